"""RecomputeBlocks: gradients stay what they are, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from torch import nn

from tests.passes.helpers import Machine, derived, label
from tests.passes.networks import Mixed, sample, seeded
from tests.passes.test_recompute_blocks import Blocks
from tvm_tinytrain.config import SGD
from tvm_tinytrain.passes.block_segments import find_segments
from tvm_tinytrain.passes.fuse_update import FuseUpdate
from tvm_tinytrain.passes.prune_backward import PruneBackward, full_update
from tvm_tinytrain.passes.recompute_blocks import rewrite
from tvm_tinytrain.passes.split_weights import SplitWeights
from tvm_tinytrain.passes.state import get_layers
from tvm_tinytrain.plan import UpdatePlan

NETWORKS = [(Blocks, (3, 8, 8)), (Mixed, Mixed.shape)]


@pytest.mark.parametrize(("make", "shape"), NETWORKS)
def test_gradients_of_everything_are_those_of_the_plain_step(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    mod = derived(seeded(make), x := sample(*shape))
    segments = find_segments(mod, "step")
    assert segments
    again = rewrite(mod, "step", segments)
    assert not find_segments(again, "step")
    plain, twice = (Machine(m).run("step", x.numpy(), label(1)) for m in (mod, again))
    for a, b in zip(plain, twice, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("whole", [True, False])
def test_a_weight_is_read_again_before_its_update(whole: bool) -> None:
    net, x = seeded(Blocks), sample(3, 8, 8)
    mod = derived(net, x)
    layers = get_layers(mod)
    plan = (
        UpdatePlan(tuple(full_update(layer) for layer in layers))
        if whole
        else UpdatePlan.from_channels({layer.id: [0, 2] for layer in layers})
    )
    mod = FuseUpdate(SGD(0.5))(SplitWeights()(PruneBackward(plan)(mod)))
    again = rewrite(mod, "step", find_segments(mod, "step"))
    plain, twice = Machine(mod), Machine(again)
    for machine in (plain, twice):
        for turn in range(3):
            machine.run("step", x.numpy(), label(turn % 3))
    for name in plain.tensors:
        np.testing.assert_array_equal(plain.value(name), twice.value(name))
