"""FuseUpdate: parameters after several updates against torch.optim in float64, sample by sample and accumulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.helpers import Machine, assert_close, derived, folded, label
from tests.passes.networks import Mixed, Perceptron, Twice, sample, seeded
from tvm_tinytrain.config import SGD, Adam, AdamW, Optimizer
from tvm_tinytrain.passes.fuse_update import FuseUpdate
from tvm_tinytrain.passes.prune_backward import PruneBackward, full_update
from tvm_tinytrain.passes.split_weights import SplitWeights
from tvm_tinytrain.passes.state import get_layers
from tvm_tinytrain.plan import UpdatePlan

STEPS, SAMPLES = 3, 3
OPTIMIZERS = {
    "sgd": (SGD(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "momentum": (SGD(0.05, 0.9), lambda p: torch.optim.SGD(p, 0.05, 0.9)),
    "nesterov": (
        SGD(0.02, 0.8, 0.01, True),
        lambda p: torch.optim.SGD(p, 0.02, 0.8, weight_decay=0.01, nesterov=True),
    ),
    "heavy": (SGD(0.05, 0.9, 0.1), lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=0.1)),
    "decay": (SGD(0.05, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1)),
    "adam": (
        Adam(0.01, (0.8, 0.9), 1e-3, 0.05),
        lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.9), 1e-3, weight_decay=0.05),
    ),
    "adamw": (
        AdamW(0.01, (0.8, 0.9), 1e-3, 0.1),
        lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.9), 1e-3, 0.1),
    ),
}


def samples(net: type, count: int) -> list[tuple[torch.Tensor, int]]:
    return [(sample(*net.shape, seed=10 + i), i % 3) for i in range(count)]


def torch_training(
    net: nn.Module, make: Callable[..., Any], batches: list[list[tuple[torch.Tensor, int]]]
) -> dict[str, np.ndarray]:
    """Parameters after one optimizer step for each batch, on the sum of its samples' losses."""
    net = net.double()
    optimizer = make(net.parameters())
    for batch in batches:
        optimizer.zero_grad()
        for x, y in batch:
            F.cross_entropy(net(x.double()), torch.tensor([y])).backward()
        optimizer.step()
    return {name.replace(".", "_"): p.detach().numpy() for name, p in net.named_parameters()}


def machine(make: Callable[[], nn.Module], optimizer: Optimizer, accumulate: bool) -> Machine:
    mod = derived(seeded(make), sample(*make.shape))
    plan = UpdatePlan(tuple(full_update(layer) for layer in get_layers(mod)))
    return Machine(FuseUpdate(optimizer, accumulate=accumulate)(PruneBackward(plan)(mod)))


@pytest.mark.parametrize(
    ("make", "name"), [*((Perceptron, name) for name in OPTIMIZERS), (Twice, "heavy"), (Twice, "adam")]
)
def test_steps(make: Callable[[], nn.Module], name: str) -> None:
    optimizer, reference = OPTIMIZERS[name]
    vm, data = machine(make, optimizer, accumulate=False), samples(make, STEPS)
    for x, y in data:
        vm.run("step", x.numpy(), label(y))
    expected = torch_training(folded(seeded(make)), reference, [[s] for s in data])
    assert_close({k: vm.value(k) for k in expected}, expected, 1e-5)


@pytest.mark.parametrize(("make", "name"), [(Perceptron, "sgd"), (Twice, "nesterov"), (Twice, "adamw")])
def test_accumulated_samples(make: Callable[[], nn.Module], name: str) -> None:
    optimizer, reference = OPTIMIZERS[name]
    vm, data = machine(make, optimizer, accumulate=True), samples(make, STEPS * SAMPLES)
    batches = [data[i * SAMPLES : (i + 1) * SAMPLES] for i in range(STEPS)]
    for batch in batches:
        for x, y in batch:
            vm.run("accumulate", x.numpy(), label(y))
        vm.run("apply")
        assert all(not vm.value(k).any() for k in vm.tensors if k.startswith("g_")), "not cleared"
    expected = torch_training(folded(seeded(make)), reference, batches)
    assert_close({k: vm.value(k) for k in expected}, expected, 1e-5)


def test_convolutional_network() -> None:
    optimizer, reference = OPTIMIZERS["momentum"]
    vm, data = machine(Mixed, optimizer, accumulate=False), samples(Mixed, STEPS)
    for x, y in data:
        vm.run("step", x.numpy(), label(y))
    expected = torch_training(folded(seeded(Mixed)), reference, [[s] for s in data])
    assert_close({k: vm.value(k) for k in expected}, expected, 2e-5)


@pytest.mark.parametrize(("name", "accumulate"), [("nesterov", False), ("adamw", True)])
def test_partial_plan_moves_only_its_rows(name: str, accumulate: bool) -> None:
    """Weight decay of channels that are not trained would show here; rows split off and rows in place agree."""
    optimizer, _ = OPTIMIZERS[name]
    rows = {"conv": (1, 3), "square": (0,), "head": (0, 2)}
    pruned = PruneBackward(UpdatePlan.from_channels(dict(enumerate(rows.values()))))(
        derived(seeded(Twice), sample(*Twice.shape))
    )
    whole, split = (
        Machine(FuseUpdate(optimizer, accumulate=accumulate)(mod)) for mod in (pruned, SplitWeights()(pruned))
    )
    for x, y in samples(Twice, STEPS):
        for vm in (whole, split):
            for entry in ("accumulate", "apply") if accumulate else ("step",):
                vm.run(entry, *(() if entry == "apply" else (x.numpy(), label(y))))
    for layer, chosen in rows.items():
        for kind in ("weight", "bias"):
            before = dict(seeded(Twice).named_parameters())[f"{layer}.{kind}"].detach().numpy()
            after = whole.value(f"{layer}_{kind}")
            changed = np.abs(after - before).reshape(len(before), -1).max(1) > 0
            assert tuple(np.flatnonzero(changed)) == chosen
            trained = {"rows": after[list(chosen)]}
            assert_close(trained, {"rows": split.value(f"{layer}_{kind}_rows")}, 1e-6)
    x = sample(*Twice.shape, seed=99).numpy()
    np.testing.assert_allclose(whole.run("predict", x)[0], split.run("predict", x)[0], rtol=1e-5, atol=1e-6)
