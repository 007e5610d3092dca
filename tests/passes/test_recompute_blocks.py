"""RecomputeBlocks: what is computed again, where, and that nothing is that need not be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
import tvm
from torch import nn
from tvm.script import relax as R

from tests.passes.helpers import Kernels, assert_same, derived
from tests.passes.networks import sample, seeded
from tvm_tinytrain.passes import recompute_blocks
from tvm_tinytrain.passes.block_segments import find_segments
from tvm_tinytrain.passes.kernels.activations import Activation, activation
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_input_grad, conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.losses import elementwise_loss, elementwise_loss_grad
from tvm_tinytrain.passes.prune_backward import PruneBackward, full_update
from tvm_tinytrain.passes.recompute_blocks import RecomputeBlocks
from tvm_tinytrain.passes.state import RECOMPUTED, get_json, get_layers, with_roles
from tvm_tinytrain.plan import UpdatePlan

WIDE = Conv2DSpec(in_channels=2, height=6, width=6, out_channels=16, kernel=(1, 1))
NARROW = Conv2DSpec(in_channels=16, height=6, width=6, out_channels=2, kernel=(1, 1))
TANH = Activation("tanh")
KERNELS = {
    "wide": conv2d(WIDE, bias=False, low=None, high=None),
    "tanh": activation(TANH, (1, 2, 6, 6)),
    "narrow": conv2d(NARROW, bias=False, low=None, high=None),
    "loss": elementwise_loss("mse", 72),
    "loss_grad": elementwise_loss_grad("mse", 72),
    "narrow_dx": conv2d_input_grad(NARROW),
    "narrow_dw": conv2d_weight_grad(NARROW),
    "wide_dw": conv2d_weight_grad(WIDE),
}


def block(*, again: bool) -> tvm.IRModule:
    """y = narrow(wide(tanh(x))) and the gradients of both weights; with ``again``, as they should be after the pass."""
    k = Kernels(**KERNELS)
    if again:

        @R.function
        def step(
            x: R.Tensor((1, 2, 6, 6), "float32"),
            t: R.Tensor((72,), "float32"),
            a: R.Tensor((16, 2, 1, 1), "float32"),
            b: R.Tensor((2, 16, 1, 1), "float32"),
        ):
            R.func_attr({"num_input": 2})
            with R.dataflow():
                s = R.call_tir(k.tanh, (x,), out_ty=R.Tensor((1, 2, 6, 6), "float32"))
                h = R.call_tir(k.wide, (s, a), out_ty=R.Tensor((1, 16, 6, 6), "float32"))
                y = R.call_tir(k.narrow, (h, b), out_ty=R.Tensor((1, 2, 6, 6), "float32"))
                z = R.call_tir(k.tanh, (y,), out_ty=R.Tensor((1, 2, 6, 6), "float32"))
                flat = R.reshape(z, (72,))
                loss = R.call_tir(k.loss, (flat, t), out_ty=R.Tensor((1,), "float32"))
                g = R.call_tir(k.loss_grad, (flat, t), out_ty=R.Tensor((72,), "float32"))
                dy = R.reshape(g, (1, 2, 6, 6))
                h2 = R.call_tir(k.wide, (s, a), out_ty=R.Tensor((1, 16, 6, 6), "float32"))
                db = R.call_tir(k.narrow_dw, (h2, dy), out_ty=R.Tensor((2, 16, 1, 1), "float32"))
                dh = R.call_tir(k.narrow_dx, (dy, b), out_ty=R.Tensor((1, 16, 6, 6), "float32"))
                da = R.call_tir(k.wide_dw, (s, dh), out_ty=R.Tensor((16, 2, 1, 1), "float32"))
                out = (loss, da, db)
                R.output(out)
            return out

        return with_roles(k.module(step=step), {"x": "input", "t": "label"})

    @R.function
    def step(
        x: R.Tensor((1, 2, 6, 6), "float32"),
        t: R.Tensor((72,), "float32"),
        a: R.Tensor((16, 2, 1, 1), "float32"),
        b: R.Tensor((2, 16, 1, 1), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            s = R.call_tir(k.tanh, (x,), out_ty=R.Tensor((1, 2, 6, 6), "float32"))
            h = R.call_tir(k.wide, (s, a), out_ty=R.Tensor((1, 16, 6, 6), "float32"))
            y = R.call_tir(k.narrow, (h, b), out_ty=R.Tensor((1, 2, 6, 6), "float32"))
            z = R.call_tir(k.tanh, (y,), out_ty=R.Tensor((1, 2, 6, 6), "float32"))
            flat = R.reshape(z, (72,))
            loss = R.call_tir(k.loss, (flat, t), out_ty=R.Tensor((1,), "float32"))
            g = R.call_tir(k.loss_grad, (flat, t), out_ty=R.Tensor((72,), "float32"))
            dy = R.reshape(g, (1, 2, 6, 6))
            db = R.call_tir(k.narrow_dw, (h, dy), out_ty=R.Tensor((2, 16, 1, 1), "float32"))
            dh = R.call_tir(k.narrow_dx, (dy, b), out_ty=R.Tensor((1, 16, 6, 6), "float32"))
            da = R.call_tir(k.wide_dw, (s, dh), out_ty=R.Tensor((16, 2, 1, 1), "float32"))
            out = (loss, da, db)
            R.output(out)
        return out

    return with_roles(k.module(step=step), {"x": "input", "t": "label"})


def test_a_block_keeps_its_input_and_computes_its_inside_again() -> None:
    (segment,) = find_segments(block(again=False), "step")
    after = recompute_blocks.rewrite(block(again=False), "step", [segment])
    assert_same(after, block(again=True))
    assert segment.macs == WIDE.macs
    assert not find_segments(after, "step")


class Blocks(nn.Module):
    """Bottlenecks of growing width, the last one with a skip connection."""

    def __init__(self, widths: Sequence[int] = (12, 20, 28)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.ModuleList(nn.Conv2d(4, w, 1) for w in widths)
        self.deep = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1, groups=w) for w in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(w, 4, 1) for w in widths)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        last = len(self.wide) - 1
        for i, (wide, deep, narrow) in enumerate(zip(self.wide, self.deep, self.narrow, strict=True)):
            y = narrow(nn.functional.relu6(deep(nn.functional.relu6(wide(x)))))
            x = x + y if i == last else y
        return self.head(x.mean([2, 3]))


@pytest.fixture(scope="module")
def trained() -> tvm.IRModule:
    mod = derived(seeded(Blocks), sample(3, 8, 8))
    return PruneBackward(UpdatePlan(tuple(full_update(layer) for layer in get_layers(mod))))(mod)


def test_what_does_not_lower_the_peak_is_not_computed_again() -> None:
    before = derived(
        seeded(lambda: Blocks((30,))), sample(3, 8, 8)
    )  # the gradient of an inner tensor meets the tensor itself anyway
    after = RecomputeBlocks({"step": 0}, masks=False, reuse=False)(before)
    assert_same(after, before)
    assert get_json(after, RECOMPUTED) == {}


def test_a_segment_is_a_block(trained: tvm.IRModule) -> None:
    segments = find_segments(trained, "step")
    sizes = [sum(recompute_blocks.bytes_of(o) for o in s.owners) for s in segments]
    assert sizes[:3] == [2 * w * 64 * 4 for w in (12, 20, 28)]
    assert sizes[3:] == [4 * 4]  # the mean in front of the last layer
    by_block = [[layer.macs for layer in get_layers(trained)[1 + 3 * i : 3 + 3 * i]] for i in range(3)]
    assert [s.macs for s in segments[:3]] == [sum(macs) for macs in by_block]


@pytest.mark.parametrize("saved", [1, 8000, 14000, 20000, 10**6])
def test_a_budget_is_met_with_the_fewest_multiply_accumulates(trained: tvm.IRModule, saved: int) -> None:
    rule = RecomputeBlocks({}, stream=False, masks=False, reuse=False)
    segments = find_segments(trained, "step")

    def peak(chosen: Sequence[object]) -> int:
        return max(rule._profile(recompute_blocks.rewrite(trained, "step", chosen), "step"))  # type: ignore[arg-type]

    every = [c for n in range(len(segments) + 1) for c in combinations(segments, n)]
    lowest = min(peak(c) for c in every)
    limit = max(peak([]) - saved, lowest)
    cheapest = min(sum(s.macs for s in c) for c in every if peak(c) <= limit)
    after = RecomputeBlocks({"step": limit}, stream=False, masks=False, reuse=False)(trained)
    tvm.relax.analysis.well_formed(after)
    assert max(rule._profile(after, "step")) <= limit
    assert get_json(after, RECOMPUTED)["step"]["macs"] == cheapest


def test_a_function_that_fits_or_is_not_named_stays(trained: tvm.IRModule) -> None:
    for limits in ({}, {"step": 10**9}):
        assert_same(RecomputeBlocks(limits)(trained), trained)
