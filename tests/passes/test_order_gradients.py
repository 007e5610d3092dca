"""OrderGradients: what moves, what an update holds back, and that the gradients stay."""

from __future__ import annotations

import numpy as np
import torch
import tvm
from torch import nn

from tests.passes.helpers import Machine, derived, label
from tests.passes.networks import sample, seeded
from tvm_tinytrain.config import SGD
from tvm_tinytrain.passes.fuse_update import FuseUpdate
from tvm_tinytrain.passes.kernels.builder import kernel_kind
from tvm_tinytrain.passes.liveness import live_bytes
from tvm_tinytrain.passes.order_gradients import OrderGradients, reordered
from tvm_tinytrain.passes.prune_backward import PruneBackward, full_update
from tvm_tinytrain.passes.rewriting import bindings, callee
from tvm_tinytrain.passes.state import get_layers
from tvm_tinytrain.plan import UpdatePlan


class Linear(nn.Module):
    """Convolutions without clamps, so that nothing but the weight gradient saves their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean([2, 3]))


def built(*, accumulate: bool) -> tvm.IRModule:
    """The network's training function with everything trained."""
    mod = derived(seeded(Linear), sample(4, 8, 8))
    mod = PruneBackward(UpdatePlan(tuple(full_update(layer) for layer in get_layers(mod))))(mod)
    return FuseUpdate(SGD(0.1), accumulate=accumulate)(mod)


def kinds(mod: tvm.IRModule, found: list[tvm.relax.VarBinding]) -> list[str]:
    """Kernel kinds of the convolutions' gradients, in order."""
    names = [kernel_kind(mod[gv]) for b in found if (gv := callee(b.value)) is not None]
    return [str(n) for n in names if n is not None and n.startswith("conv2d_") and n.endswith("grad")]


def test_an_accumulated_gradient_runs_before_the_gradient_of_the_input() -> None:
    mod = built(accumulate=True)
    before = kinds(mod, bindings(mod["accumulate"]))
    after = kinds(mod, reordered(mod, mod["accumulate"]))
    assert before[:2] == ["conv2d_input_grad", "conv2d_weight_grad"]
    assert after[:2] == ["conv2d_weight_grad", "conv2d_input_grad"]
    assert sorted(before) == sorted(after)


def test_an_update_stays_behind_the_last_reader_of_its_weight() -> None:
    mod = built(accumulate=False)
    assert kinds(mod, reordered(mod, mod["step"])) == kinds(mod, bindings(mod["step"]))


def test_the_peak_does_not_rise_and_gradients_are_the_same() -> None:
    mod = built(accumulate=True)
    after = OrderGradients()(mod)
    tvm.relax.analysis.well_formed(after)
    assert max(live_bytes(after["accumulate"])) <= max(live_bytes(mod["accumulate"]))
    x = sample(4, 8, 8).numpy()
    plain, moved = Machine(mod), Machine(after)
    np.testing.assert_array_equal(
        plain.run("accumulate", x, label(1))[0], moved.run("accumulate", x, label(1))[0]
    )
    for name in plain.tensors:
        np.testing.assert_array_equal(plain.value(name), moved.value(name))
