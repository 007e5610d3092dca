"""Networks × updates, their optimizers' steps, and the same networks through other front ends, against PyTorch."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.gradients_reference import Array, Reference, Sample, allowed, planned, relative
from benchmarks.lite_residual import with_lite_residuals
from benchmarks.networks import REGRESSION, zoo
from tests.frontend.relay_writer import export_program, write_relay
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.config import (
    SGD,
    Adam,
    AdamW,
    AdapterDrop,
    BiasOnly,
    FullTrain,
    LastLayer,
    Optimizer,
    SparseUpdate,
    TinyTL,
    Update,
)
from tvm_tinytrain.frontend.onnx import from_onnx
from tvm_tinytrain.frontend.relay_text import from_relay_text
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.state import Layer
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan

SCHEMES = {"mcunet": "mcunet-99kb", "mobilenet_v2_035": "mbv2-99kb", "proxyless_nas_03": "proxyless-98kb"}
"""SparseUpdate's scheme for each of its backbones."""
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD momentum": SGD(1e-3, momentum=0.9),
    "SGD Nesterov, decay": SGD(1e-3, momentum=0.9, weight_decay=0.01, nesterov=True),
    "Adam": Adam(1e-3),
    "Adam, decay": Adam(1e-3, weight_decay=0.01),
    "AdamW": AdamW(1e-3, weight_decay=0.05),
}
STEPS = 2
"""Steps after which an optimizer is compared with PyTorch's."""


@dataclass(frozen=True)
class Comparison:
    """The tensor of a run that is worst off: its error in units of what it may have, that error, PyTorch's own, its name."""

    share: float
    error: float
    torchs: float
    tensor: str
    tensors: int

    def row(self) -> dict[str, Any]:
        """For the report."""
        return {
            "worst_tensor": self.tensor,
            "error": self.error,
            "allowed": allowed(self.torchs),
            "torch_float32_error": self.torchs,
            "tensors": self.tensors,
        }


def worst(errors: Mapping[str, float], torchs: Mapping[str, float]) -> Comparison:
    """The tensor nearest to (or furthest beyond) its allowance."""
    name = max(errors, key=lambda n: errors[n] / allowed(torchs[n]))
    share = errors[name] / allowed(torchs[name])
    return Comparison(share, errors[name], torchs[name], name, len(errors))


class Compiler:
    """Builds in this thread while the C compiler works on the library before in another."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def load(
        self, module: TrainModule, cflags: Sequence[str] | None = None
    ) -> Future[tuple[TrainModule, InProcess]]:
        """Compiles and loads a library."""
        return self._pool.submit(lambda: (module, InProcess(module, cflags=cflags)))


def partial_plan(layers: Sequence[Layer], seed: int = 0) -> UpdatePlan:
    """A third of the layers, each with a random quarter of its channels, every third of them of its input channels instead."""
    rng = np.random.default_rng(seed)
    ids = sorted(rng.choice(len(layers), max(2, len(layers) // 3), replace=False).tolist())
    return UpdatePlan(tuple(random_update(layers[i], rng, by_inputs=n % 3 == 2) for n, i in enumerate(ids)))


def random_update(layer: Layer, rng: np.random.Generator, *, by_inputs: bool) -> LayerUpdate:
    """Some channels of a layer (or all, and some input channels), with the bias if there is one."""

    def some(total: int) -> tuple[int, ...]:
        return tuple(sorted(rng.choice(total, max(1, total // 4), replace=False).tolist()))

    bias = layer.bias is not None
    if by_inputs and layer.inputs > 1:
        return LayerUpdate(layer.id, tuple(range(layer.channels)), some(layer.inputs), bias=bias)
    return LayerUpdate(layer.id, some(layer.channels), bias=bias)


def updates_of(name: str, layers: Sequence[Layer]) -> dict[str, Update]:
    """The updates that a network of the zoo is measured with."""
    found: dict[str, Update] = {
        "FullTrain": FullTrain(),
        "LastLayer": LastLayer(),
        "BiasOnly": BiasOnly(),
        "UpdatePlan": partial_plan(layers),
    }
    if name in SCHEMES:
        found["SparseUpdate"] = SparseUpdate(SCHEMES[name])
    return found


def reference_of(name: str) -> Reference:
    """A network of the zoo with a sample."""
    network = zoo()[name]
    net = network.make()
    return Reference(net, Sample.make(net, network.input_shape, regression=name in REGRESSION))


def built(reference: Reference, target: str = "host", **options: Any) -> TrainModule:
    """A library of the reference's network, for its loss."""
    loss = reference.sample.loss
    return build(reference.module, target, params=reference.params, loss=loss, **options)


def gradient_errors(reference: Reference, module: TrainModule, library: InProcess) -> Comparison:
    """Runs one sample and compares loss and all accumulated gradients."""
    loss = library.step(reference.sample.x, reference.sample.label, "accumulate")
    errors = {"loss": relative(np.array([loss]), reference.exact["loss"])}
    torchs = {"loss": reference.torchs["loss"]}
    tensors = [t["name"].removeprefix("g_") for t in module.metadata["tensors"] if t["role"] == "grad"]
    for name, tensor, exact in planned(module.plan, reference.layers, reference.exact, tensors):
        errors[name] = relative(library.read(f"g_{tensor}"), exact)
        torchs[name] = reference.torchs[name]
    if len(errors) != len(tensors) + 1:
        raise ValueError(f"{len(tensors)} gradients in the library, {len(errors) - 1} in the plan")
    return worst(errors, torchs)


def measure_updates(
    name: str, compiler: Compiler, only: Sequence[str] = ()
) -> Iterator[tuple[str, Comparison]]:
    """(update, comparison) of a network of the zoo."""
    reference = reference_of(name)
    cases: list[tuple[str, Update, Reference]] = [
        (title, update, reference) for title, update in updates_of(name, reference.layers).items()
    ]
    cases += branches_of(name)
    waiting = [
        (title, of, compiler.load(built(of, update=update, accumulate=True)))
        for title, update, of in cases
        if not only or title in only
    ]
    for title, of, future in waiting:
        module, library = future.result()
        with library:
            yield title, gradient_errors(of, module, library)


def branches_of(name: str) -> Iterator[tuple[str, Update, Reference]]:
    """(title, update, reference) of the updates that train branches beside a network's blocks; none for one without blocks."""
    network = zoo()[name]
    net, modules = network.make(), TinyTL(gain=0.25)
    updates: dict[str, Update] = {"TinyTL": modules, "AdapterDrop 0.5": AdapterDrop(0.5, modules)}
    for title, update in updates.items():
        drop = update.drop if isinstance(update, AdapterDrop) else 0.0
        wrapped = with_lite_residuals(net, torch.zeros(network.input_shape), drop)
        if wrapped is not None:
            sample = Sample.make(net, network.input_shape, regression=False)
            yield title, update, Reference(wrapped, sample, net, order=True, update=update)


def measure_optimizer(reference: Reference, optimizer: Optimizer, library: InProcess) -> Comparison:
    """Two steps on one sample, so that momentum and moments count: how far each parameter moved, against torch.optim.

    What a parameter moved, Δw = w' − w, is rounded to multiples of ε‖w‖ in any float32 run, PyTorch's too. The rates are small
    enough that the second step starts from a network of much the same gradients, not from one thrown far away.
    """
    exact, single = (_torch_moves(reference, optimizer, dtype) for dtype in (torch.float64, torch.float32))
    names = list(exact)
    before = {name: library.read(name) for name in names}
    for _ in range(STEPS):
        library.step(reference.sample.x, reference.sample.label)
    errors = {
        name: relative(library.read(name).astype(np.float64) - before[name], exact[name]) for name in names
    }
    return worst(errors, {name: relative(single[name], exact[name]) for name in names})


def _torch_moves(reference: Reference, optimizer: Optimizer, dtype: torch.dtype) -> dict[str, Array]:
    """w' − w of each parameter after the steps, in float64."""
    net = copy.deepcopy(reference.net).to(dtype)
    before = {name: value.astype(np.float64) for name, value in reference.collect(net, lambda p: p)}
    torchs = _torch_optimizer(optimizer, net)
    for _ in range(STEPS):
        torchs.zero_grad()
        loss = reference.loss_of(net, dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        torchs.step()
    after = dict(reference.collect(net, lambda p: p))
    return {name: value.astype(np.float64) - before[name] for name, value in after.items()}


def _torch_optimizer(o: Optimizer, net: nn.Module) -> torch.optim.Optimizer:
    if isinstance(o, SGD):
        return torch.optim.SGD(net.parameters(), o.lr, o.momentum, 0.0, o.weight_decay, o.nesterov)
    kind = torch.optim.AdamW if isinstance(o, AdamW) else torch.optim.Adam
    return kind(net.parameters(), o.lr, o.betas, o.eps, o.weight_decay)


def through_front_ends(name: str) -> Iterator[tuple[str, Reference]]:
    """(route, reference) of a network of the zoo exported to ONNX, as trained and with batch norms folded, and to Relay text."""
    network = zoo()[name]
    net, shape = network.make(), network.input_shape
    sample = Sample.make(net, shape, regression=name in REGRESSION)
    yield "ONNX", Reference(net, sample, from_onnx(_onnx(net, shape, folded=False)))
    yield "ONNX folded", Reference(net, sample, _onnx(net, shape, folded=True), order=True)
    text, params = write_relay(export_program(net, shape))
    yield "Relay text", Reference(net, sample, from_relay_text(text, params))


def _onnx(net: nn.Module, shape: Sequence[int], *, folded: bool) -> onnx.ModelProto:
    mode = torch.onnx.TrainingMode
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(*shape),), buffer, dynamo=False, opset_version=17, do_constant_folding=folded,  # type: ignore[arg-type]
            training=mode.EVAL if folded else mode.PRESERVE,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())
