"""Candidates of a task-adaptive library: which layers of a network it may choose among, and what their plans say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.building.adaptive_net import build
from tests.compiled import loaded
from tvm_tinytrain.adaptive_library import choose_candidates
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.state import Layer
from tvm_tinytrain.selection.table_accounting import TableAccounting

pytestmark = pytest.mark.host_compiler
FAST = ("-O1",)  # where a library is compiled for one test, and the compiler is not the point


def layer(id: int, inputs: int, channels: int, kernel: int, *, depthwise: bool = False) -> Layer:
    return Layer(
        id, "conv2d", f"w{id}", None, (channels, 1 if depthwise else inputs, kernel, kernel), 1, depthwise
    )


def test_candidates_by_blocks() -> None:
    layers = (
        layer(0, 3, 8, 3),
        layer(1, 8, 8, 3, depthwise=True),  # a block that does not widen
        layer(2, 8, 8, 1),
        layer(3, 8, 8, 3, depthwise=True),  # the same behind a projection
        layer(4, 8, 4, 1),
        layer(5, 4, 24, 1),
        layer(6, 24, 24, 5, depthwise=True),
        layer(7, 24, 6, 1),
        layer(8, 6, 10, 1),
    )
    for blocks, first in ((1, 5), (2, 3), (3, 1)):
        assert choose_candidates(tt.TaskAdaptive(blocks=blocks), layers) == tuple(range(first, 9))
    with pytest.raises(PlanError, match="1 to 3 of this network"):
        choose_candidates(tt.TaskAdaptive(blocks=4), layers)
    assert choose_candidates(tt.TaskAdaptive(candidates=2), layers) == (7, 8)
    # 5 widens. 2 and 4 are 1×1 convolutions before a depthwise one, or after, but project.
    assert choose_candidates(tt.TaskAdaptive(candidates=9, layer_kind="expansions"), layers) == (5,)
    assert choose_candidates(tt.TaskAdaptive(blocks=2, layer_kind="auto"), layers) == (5,)
    assert choose_candidates(tt.TaskAdaptive(candidates=3, layer_kind="auto"), layers) == (6, 7, 8)
    with pytest.raises(PlanError, match="no expansion among layers 6, 7, 8"):
        choose_candidates(tt.TaskAdaptive(candidates=3, layer_kind="expansions"), layers)
    for asked in (tt.TaskAdaptive(candidates=4), tt.TaskAdaptive(blocks=1)):
        assert choose_candidates(asked, layers, frozenset({1, 7})) == (5, 6, 8)
    assert choose_candidates(tt.TaskAdaptive(candidates=(1, 8)), layers, frozenset({1})) == (1, 8)
    with pytest.raises(PlanError, match="layers 7, 8: found no kernels over single channels"):
        choose_candidates(tt.TaskAdaptive(candidates=2), layers, frozenset({7, 8}))
    made = build(update=tt.TaskAdaptive(blocks=1), budget=tt.Budget(memory=60000))
    assert [c["layer"] for c in made.metadata["adaptive"]["candidates"]] == [1, 2, 3]


def test_layers_without_kernels_over_single_channels_are_no_candidates() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.Conv2d(6, 6, 3, groups=3),
        torch.nn.ConvTranspose2d(6, 4, 2, 2),
        torch.nn.Conv2d(4, 4, 3, stride=2, dilation=2),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 3),
    ).eval()
    inputs = (torch.zeros(1, 3, 8, 8),)
    made = tt.build(net, "host", example_inputs=inputs, update=tt.TaskAdaptive())
    assert [c["layer"] for c in made.metadata["adaptive"]["candidates"]] == [0, 4]
    with pytest.raises(PlanError, match="candidate layer 1: found no kernels over single channels"):
        tt.build(net, "host", example_inputs=inputs, update=tt.TaskAdaptive(candidates=(1, 4)))


def test_the_plan_of_a_layer_without_a_bias_says_so() -> None:
    """Else it would be another plan than the host's, and the build's, for the same channels."""
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(3, 2)
    ).eval()
    made = tt.build(net, "host", example_inputs=(torch.zeros(1, 4),), update=tt.TaskAdaptive(candidates=2))
    assert [u["bias"] for u in made.metadata["plan"]["layers"]] == [False, True]
    accounting = TableAccounting.from_metadata(made.metadata)
    assert [c.bias for c in accounting.candidates] == [False, True]
    images = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    with loaded(made, cflags=FAST) as library:
        given = tt.UpdatePlan.from_channels({0: [1], 1: [0]})
        plan = library.learn(images, [0, 1, 0, 1], iterations=1, plan=given).plan
        assert plan is not None and [u.bias for u in plan.layers] == [False, True]
        assert plan == accounting.plan(library.read("request").tobytes())
