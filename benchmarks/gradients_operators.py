"""Gradients of single operators by our C for this machine, against PyTorch autograd in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gradients_networks import Compiler
from benchmarks.gradients_reference import Array, relative
from benchmarks.operator_cases import PROBE_INPUT, OperatorCase, probe
from tests.passes.operator_oracle import LOSSES, Bundle, fused, reference
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.config import FullTrain
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.state import get_layers, get_values
from tvm_tinytrain.pipeline import canonicalise

BUNDLE = 16
"""Cases in one library."""


@dataclass(frozen=True)
class CaseError:
    """The worst of a case's parameter tensors, the loss included; ``failure`` where there is no result."""

    case: str
    error: float
    tensor: str
    tensors: int
    failure: str = ""


@dataclass(frozen=True)
class _Bundled:
    """Cases in one library, with what is expected of it."""

    cases: list[OperatorCase]
    x: Array
    label: Array
    loss: float
    expected: dict[str, Array]
    library: Future[tuple[TrainModule, InProcess]]


def measure_operators(cases: Sequence[OperatorCase], compiler: Compiler) -> Iterator[CaseError]:
    """One result for each case, in the order of the libraries that they share."""
    waiting: list[_Bundled | CaseError] = []
    for bundle in bundles(cases):
        waiting += _prepare(bundle, compiler)
    for item in waiting:
        if isinstance(item, CaseError):
            yield item
        else:
            yield from _compare(item)


def bundles(cases: Sequence[OperatorCase]) -> list[list[OperatorCase]]:
    """Cases with a mean squared error, whose outputs stand side by side, in groups; others alone."""
    shared = [case for case in cases if case.loss == "mse"]
    groups = [shared[i : i + BUNDLE] for i in range(0, len(shared), BUNDLE)]
    return groups + [[case] for case in cases if case.loss != "mse"]


def _prepare(cases: list[OperatorCase], compiler: Compiler) -> list[_Bundled | CaseError]:
    try:
        return [_build(cases, compiler)]
    except Exception as error:
        if len(cases) == 1:
            return [CaseError(cases[0].name, float("inf"), "", 0, f"{type(error).__name__}: {error}")]
        return [item for case in cases for item in _prepare([case], compiler)]


def _build(cases: list[OperatorCase], compiler: Compiler, seed: int = 0) -> _Bundled:
    loss = cases[0].loss
    net = Bundle([probe(c, seed) for c in cases]) if loss == "mse" else probe(cases[0], seed)
    exact = fused(net)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=PROBE_INPUT).astype(np.float32)
    with torch.no_grad():
        shape = tuple(exact(torch.from_numpy(x).double()).shape)
    labels = {
        "mse": lambda: rng.normal(size=shape).astype(np.float32),
        "bce": lambda: rng.uniform(size=shape).astype(np.float32),
        "cross_entropy": lambda: rng.integers(shape[1], size=1).astype(np.int32),
    }
    label = labels[loss]()
    value, expected = reference(exact, torch.from_numpy(x), torch.from_numpy(label), loss)
    imported = import_model(net, example_inputs=(torch.zeros(PROBE_INPUT),))
    canonical = imported
    for each in canonicalise():
        canonical = each(canonical)
    of_layers = {name for layer in get_layers(canonical) for name in (layer.weight, layer.bias)}
    others = [name for name in expected if name not in of_layers]
    module = build(
        imported, "host", params=get_values(imported), loss=LOSSES[loss], update=FullTrain(), accumulate=True,
        also_train=others,
    )  # fmt: skip
    return _Bundled(cases, x, label, value, expected, compiler.load(module))


def _compare(bundled: _Bundled) -> Iterator[CaseError]:
    _, library = bundled.library.result()
    with library:
        loss = library.step(bundled.x, bundled.label, "accumulate")
        together = bundled.cases[0].loss == "mse"
        errors: list[dict[str, float]] = [{} for _ in bundled.cases]
        for name, exact in bundled.expected.items():
            index, _, rest = name.removeprefix("nets_").partition("_") if together else ("0", "", name)
            ours = library.read(f"g_{name}")
            if ours.shape != exact.shape and ours.shape == exact.T.shape:
                exact = exact.T  # x @ weight is kept as [out, in]
            errors[int(index)][rest] = relative(ours, exact)
    shared = relative(np.array([loss]), np.array([bundled.loss]))
    for case, found in zip(bundled.cases, errors, strict=True):
        found["loss"] = shared
        tensor = max(found, key=lambda n: found[n])
        yield CaseError(case.name, found[tensor], tensor, len(found) - 1)
