"""Adaptation by compiled code beside the same adaptation by PyTorch autograd: predictions and weights, from the same draws.

The reference computes in float64. Forty steps of Adam amplify what rounding changes in the first ones, above all where all weights are
trained, so what PyTorch's own float32 makes of the same adaptation stands beside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from benchmarks.lite_residual import WithLiteResidual, with_lite_residuals
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.fewshot.datasets import Dataset
from tvm_tinytrain.fewshot.episodes import FixedWays, sample_episode
from tvm_tinytrain.fewshot.methods import ADAPTERS, LibraryFiles, Method
from tvm_tinytrain.fewshot.protonet import prototypical_logits
from tvm_tinytrain.fewshot.reference import adapt_reference
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.trained_rows import read_rows
from tvm_tinytrain.plan import UpdatePlan

LOSS = Prototypical(through_prototypes=False)
STEPS = 40
RATE = 1e-4
SAMPLER = FixedWays(5, 5, 15)
Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Agreement:
    """One method on one task. ``predictions``: queries that both classify alike, as a share; ``weights``: ‖Δ‖₂ / ‖w‖₂ over what
    is trained of all layers; ``torch_predictions``: the same share for PyTorch's float32."""

    method: str
    domain: str
    queries: int
    predictions: float
    torch_predictions: float
    weights: float


def measure_agreement(
    method: Method,
    dataset: Dataset,
    make: Callable[[], nn.Module],
    load: Callable[[LibraryFiles], InProcess],
) -> Agreement:
    """Adapt to the first task of a data set, by the library and by PyTorch in both precisions."""
    episode = sample_episode(dataset, SAMPLER, 0, 0)
    images, labels = episode.support_set()
    queries, _ = episode.query_set()
    with load(method.library) as library:
        library.init()
        method.write_options(library, 0)
        start = _starting(method, library, make, images[:1])
        result = library.adapt(images, labels, iterations=STEPS, lr=RATE, loss=LOSS, seed=0)
        plan = result.plan or UpdatePlan.from_json(json.dumps(method.library.metadata["plan"]))
        own = result.classify(library, queries)
        exact_model, exact = _reference(
            start(), plan, images, labels, queries, torch.float64, result.plan is not None
        )
        _, single = _reference(start(), plan, images, labels, queries, torch.float32, result.plan is not None)
        adaptive = result.plan is not None
        rows = read_rows(library, method.library.metadata) if adaptive else {}
        tensors = [str(layer["weight"]) for layer in method.library.metadata["layers"]]
        weights = _weight_error(library, tensors, rows, exact_model, plan)
    return Agreement(
        method.name,
        dataset.name,
        len(queries),
        fmean((own == exact).tolist()),
        fmean((single == exact).tolist()),
        weights,
    )


def _starting(
    method: Method, library: InProcess, make: Callable[[], nn.Module], image: Images
) -> Callable[[], nn.Module]:
    """Makes the network that a library begins with: `make`'s, or with branches beside its blocks that have the library's weights."""
    if method.name not in ADAPTERS:
        return make
    names = [la[kind] for la in method.library.metadata["layers"] for kind in ("weight", "bias") if la[kind]]
    values = {name: library.read(name) for name in names if name.startswith("adapter")}

    def wrapped() -> nn.Module:
        model = with_lite_residuals(make(), torch.from_numpy(image), ADAPTERS[method.name])
        if model is None:
            raise ValueError(f"{method.name}: a network without blocks")
        branches = [m for m in model.modules() if isinstance(m, WithLiteResidual)]
        own = [p for b in branches for p in (*b.conv.parameters(), *b.out.parameters())]
        for parameter, value in zip(own, values.values(), strict=True):
            parameter.data = torch.from_numpy(value).reshape(parameter.shape).clone()
        return model

    return wrapped


def _reference(
    model: nn.Module,
    plan: UpdatePlan,
    images: Images,
    labels: Any,
    queries: Images,
    dtype: torch.dtype,
    selects: bool,
) -> tuple[nn.Module, npt.NDArray[np.int64]]:
    """The adapted model, and its labels of the queries."""
    model = model.to(dtype)
    parameters, masks = _trained(model, plan)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is p for p in parameters))
    adapt_reference(
        model, images, labels, parameters=parameters, masks=masks, iterations=STEPS, lr=RATE, loss=LOSS, seed=0,
        skipped_draws=int(selects),
    )  # fmt: skip
    with torch.no_grad():
        embedded = [model(torch.from_numpy(a).to(dtype)) for a in (images, queries)]
        scores = prototypical_logits(embedded[0], torch.from_numpy(labels), embedded[1], LOSS)
    return model, scores.argmax(dim=1).numpy()


def _named_weights(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[str]]:
    """All parameters, and the names of the weights by layer id: modules stand in order of execution."""
    named = dict(model.named_parameters())
    return named, [name for name in named if name.endswith("weight")]


def _trained(model: nn.Module, plan: UpdatePlan) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    """The parameters of the plan's layers, which stand in order of execution, with masks of what is trained in them."""
    named, names = _named_weights(model)
    parameters, masks = [], []
    for update in plan.layers:
        weight = named[names[update.layer]]
        rows = torch.zeros(weight.shape[0], dtype=weight.dtype)
        rows[list(update.outputs)] = 1.0
        if update.weight:
            mask = rows.reshape(-1, *[1] * (weight.ndim - 1)).expand(weight.shape).clone()
            if update.inputs is not None:
                columns = torch.zeros(weight.shape[1], dtype=weight.dtype)
                columns[list(update.inputs)] = 1.0
                mask *= columns.reshape(1, -1, *[1] * (weight.ndim - 2))
            parameters.append(weight)
            masks.append(mask)
        if update.bias:
            parameters.append(named[names[update.layer].removesuffix("weight") + "bias"])
            masks.append(rows)
    return parameters, masks


def _weight_error(
    library: InProcess,
    tensors: Sequence[str],
    chosen: Mapping[str, npt.NDArray[np.float32]],
    model: nn.Module,
    plan: UpdatePlan,
) -> float:
    """‖Δ‖₂ / ‖w‖₂ of the trained weights, all layers together.

    tensors: the library's weights by layer id. chosen: the rows of a library that chooses them itself.
    """
    named, names = _named_weights(model)
    missed = total = 0.0
    for update in plan.layers:
        if not update.weight:
            continue
        name, exact = tensors[update.layer], named[names[update.layer]].detach().numpy()
        rows = f"{name}_rows"
        if rows in chosen or rows in library.tensors:
            name, exact = rows, exact[list(update.outputs)]
        found = chosen[name] if name in chosen else library.read(name)
        missed += float(np.sum((found.reshape(exact.shape) - exact) ** 2))
        total += float(np.sum(exact**2))
    return (missed / total) ** 0.5


def methods_to_compare(methods: Sequence[Method]) -> list[Method]:
    """Those that train, and of the criteria the paper's and ours."""
    compared = ("lastlayer", "sparseupdate", *ADAPTERS, "tinytrain", "exact", "fulltrain")
    return [m for m in methods if m.trains and m.name in compared]
