"""Random plans: pruned gradients are rows of the full ones, and the program executes the multiply-accumulates that are stated.

What a program executes is counted by the program itself: kernels of a build with ``Instruments(count_macs=True)`` count each product
that they add up, where it is computed (`tvm_tinytrain.emit.count_macs`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gradients_networks import Compiler, built, random_update
from benchmarks.gradients_reference import Array, Reference, Sample, planned, relative
from benchmarks.networks import zoo
from tvm_tinytrain.build import TrainModule
from tvm_tinytrain.config import FullTrain
from tvm_tinytrain.emit.count_macs import COUNTER
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.pipeline import Instruments
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import CompiledMacs, compiled_macs
from tvm_tinytrain.update_schemes import describe_layers

UNOPTIMISED = ("-O0",)
"""Compiler flags for libraries that run one sample: the counter needs no speed."""
BATCH = 8
"""Libraries that are built before the first of them is waited for."""
COUNTING = Instruments(count_macs=True)


class Windows(nn.Module):
    """Every form of layer that the cost of a plan distinguishes: strides, padding, dilation, groups, depthwise, a skip; 5 classes."""

    shape = (1, 3, 13, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.project = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, 1, 1, groups=2)
        self.strided = nn.Conv2d(12, 12, 5, 2, 2, groups=12, bias=False)
        self.dilated = nn.Conv2d(12, 8, 3, 1, 2, 2)
        self.scattered = nn.Conv2d(8, 6, 3, 2, 2, 2)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[1, 3, 13, 12] → logits."""
        y = F.relu6(self.stem(x))
        y = self.project(F.relu6(self.depthwise(y))) + y
        y = F.relu(self.strided(F.relu(self.grouped(y))))
        y = F.relu(self.scattered(F.relu(self.dilated(y))))
        return self.head(y.mean((2, 3)))


NETWORKS: dict[str, int] = {"windows": 140, "cnn_1d": 40, "resnet8": 14, "mcunet": 6}
"""Plans for each network, 200 in all."""


@dataclass(frozen=True)
class PlanResult:
    """One plan: the worst pruned gradient against the full one's rows, and multiply-accumulates by three accounts.

    ``error`` is that of the network as it was exported. In ``trained_error`` what the plan trains has other values than the weights in
    flash, and the input gradient is that of the flash's weights and a correction: two sums in another order than the full one's.
    """

    network: str
    index: int
    layers: int
    error: float
    trained_error: float
    executed: dict[str, int]
    stated: dict[str, int]
    metadata: dict[str, int]

    @property
    def agrees(self) -> bool:
        """Whether program, cost model and metadata state the same numbers."""
        return self.executed == self.stated == self.metadata


def plan_reference(name: str) -> Reference:
    """A network with a sample; ``windows`` is the one defined here."""
    if name != "windows":
        network = zoo()[name]
        net = network.make()
        return Reference(net, Sample.make(net, network.input_shape, regression=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Windows().eval()
    return Reference(net, Sample.make(net, Windows.shape, regression=False))


def random_plan(reference: Reference, rng: np.random.Generator) -> UpdatePlan:
    """One to all layers; each whole, by rows, by input channels, or its bias alone."""
    layers = reference.layers
    ids = sorted(rng.choice(len(layers), int(rng.integers(1, len(layers) + 1)), replace=False).tolist())
    updates = []
    for layer in (layers[i] for i in ids):
        form, every = rng.choice(["whole", "rows", "rows", "inputs", "bias"]), tuple(range(layer.channels))
        if form == "whole":
            updates.append(LayerUpdate(layer.id, every, bias=layer.bias is not None))
        elif form == "bias" and layer.bias is not None:
            updates.append(LayerUpdate(layer.id, every, weight=False))
        else:
            updates.append(random_update(layer, rng, by_inputs=form == "inputs"))
    return UpdatePlan(tuple(updates))


def measure_plans(name: str, count: int, compiler: Compiler, seed: int = 0) -> Iterator[PlanResult]:
    """Builds ``count`` plans of a network and compares each with the network trained whole."""
    reference = plan_reference(name)
    rng = np.random.default_rng(seed)
    _, whole = compiler.load(_counting(reference, FullTrain()), UNOPTIMISED).result()
    with whole:
        for start in range(0, count, BATCH):
            plans = [random_plan(reference, rng) for _ in range(min(BATCH, count - start))]
            waiting = [compiler.load(_counting(reference, plan), UNOPTIMISED) for plan in plans]
            for index, future in enumerate(waiting, start):
                module, library = future.result()
                with library:
                    yield _measure(name, index, reference, whole, module, library)


def _counting(reference: Reference, update: UpdatePlan | FullTrain) -> TrainModule:
    return built(reference, update=update, accumulate=True, instruments=COUNTING)


def _measure(
    name: str, index: int, reference: Reference, whole: InProcess, module: TrainModule, library: InProcess
) -> PlanResult:
    sample = reference.sample
    whole.init()
    error = _worst_gradient(reference, whole, module, library)
    whole.init()
    library.init()
    change_weights(reference, whole, module, library)
    trained_error = _worst_gradient(reference, whole, module, library)
    executed = {
        "accumulate": executed_macs(library, lambda: library.step(sample.x, sample.label, "accumulate")),
        "predict": executed_macs(library, lambda: library.predict(sample.x)),
    }
    stated = {"accumulate": stated_macs(reference, module, "accumulate").step}
    stated["predict"] = stated_macs(reference, module, "predict").forward
    told = {entry: module.metadata["macs"][entry] for entry in stated}
    return PlanResult(name, index, len(module.plan.layers), error, trained_error, executed, stated, told)


def _worst_gradient(reference: Reference, whole: InProcess, module: TrainModule, library: InProcess) -> float:
    """One sample through both libraries: the worst error of a pruned gradient relative to the full one's rows."""
    sample = reference.sample
    for each in (whole, library):
        each.step(sample.x, sample.label, "accumulate")
    names = [name for layer in reference.layers for name in (layer.weight, layer.bias) if name is not None]
    full: dict[str, Array] = {name: whole.read(f"g_{name}") for name in names}
    tensors = [t["name"].removeprefix("g_") for t in module.metadata["tensors"] if t["role"] == "grad"]
    errors = [
        relative(library.read(f"g_{tensor}"), rows.astype(np.float64))
        for _, tensor, rows in planned(module.plan, reference.layers, full, tensors)
    ]
    if len(errors) != len(tensors):
        raise ValueError(f"{len(tensors)} gradients in the library, {len(errors)} in the plan")
    return max(errors)


def change_weights(reference: Reference, whole: InProcess, module: TrainModule, library: InProcess) -> None:
    """Gives both libraries the same new values of what the plan trains, as if they had been trained.

    Only then do trained rows differ from the weight in flash, and the kernels that correct for them have something to do.
    """
    rng = np.random.default_rng(1)
    tensors = {t["name"] for t in module.metadata["tensors"]}
    layers = {layer.id: layer for layer in reference.layers}
    for update in module.plan.layers:
        layer = layers[update.layer]
        for name in (layer.weight if update.weight else None, layer.bias if update.bias else None):
            if name is None:
                continue
            value = reference.values[name].copy()
            columns = update.inputs if name == layer.weight and update.inputs is not None else None
            where = np.ix_(update.outputs, columns) if columns is not None else (list(update.outputs),)
            value[where] *= rng.uniform(0.5, 1.5, value[where].shape).astype(np.float32)
            whole.write(name, value)
            if f"{name}_rows" in tensors:
                library.write(f"{name}_rows", value[list(update.outputs)])
            else:
                library.write(name, value)


def executed_macs(library: InProcess, run: Callable[[], object]) -> int:
    """What the counter of an instrumented library counts while ``run`` runs."""
    counter = ctypes.c_uint64.in_dll(library._library, COUNTER)
    counter.value = 0
    run()
    return int(counter.value)


def stated_macs(reference: Reference, module: TrainModule, entry: str) -> CompiledMacs:
    """The cost model's number for an entry; which layers stream is read off the program's calls."""
    weights = {layer.weight: layer.id for layer in reference.layers}
    calls = next(e.calls for e in module.program.entries if e.name == entry)
    read = [[weights[a] for a in call.args if a in weights] for call in calls]
    streamed = {layer for together in read if len(together) > 1 for layer in together}
    return compiled_macs(describe_layers(reference.canonical), module.plan, streamed)
