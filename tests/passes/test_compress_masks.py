"""CompressMasks: which clamped outputs become masks, and where they are packed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.script import relax as R

from tests.passes.helpers import Kernels, Machine, assert_same, derived, label
from tests.passes.networks import Mixed, sample, seeded
from tvm_tinytrain.passes.compress_masks import CompressMasks
from tvm_tinytrain.passes.kernels.activations import Activation, activation
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.masks import clip_grad_mask, mask_bytes, pack_mask
from tvm_tinytrain.passes.prune_backward import PruneBackward
from tvm_tinytrain.plan import UpdatePlan

RELU = activation(Activation("ramp", (1.0, 0.0, 0.0, None)), (3, 20))


def forward_use_only() -> tvm.IRModule:
    """relu(x) is read by an exponential in the forward part, and then by its own gradient only."""
    k = Kernels(relu=RELU, exp=activation(Activation("exp"), (3, 20)), grad=clip_grad((3, 20), 0.0, None))

    @R.function
    def step(x: R.Tensor((3, 20), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.relu, (x,), out_ty=R.Tensor((3, 20), "float32"))
            z = R.call_tir(k.exp, (y,), out_ty=R.Tensor((3, 20), "float32"))
            a = R.call_tir(k.exp, (z,), out_ty=R.Tensor((3, 20), "float32"))
            b = R.multiply(a, z)
            dx = R.call_tir(k.grad, (y, b), out_ty=R.Tensor((3, 20), "float32"))
            R.output(dx)
        return dx

    return k.module(step=step)


def test_an_output_that_only_its_gradient_reads_later_is_packed_before_its_last_use() -> None:
    k = Kernels(
        relu=RELU,
        exp=activation(Activation("exp"), (3, 20)),
        pack_mask=pack_mask(60, 0.0, None),
        clip_grad_mask=clip_grad_mask(60),
    )

    @R.function
    def step(x: R.Tensor((3, 20), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.relu, (x,), out_ty=R.Tensor((3, 20), "float32"))
            flat = R.reshape(y, (60,))
            mask = R.call_tir(k.pack_mask, (flat,), out_ty=R.Tensor((8,), "uint8"))
            z = R.call_tir(k.exp, (y,), out_ty=R.Tensor((3, 20), "float32"))
            a = R.call_tir(k.exp, (z,), out_ty=R.Tensor((3, 20), "float32"))
            b = R.multiply(a, z)
            dy = R.reshape(b, (60,))
            dx = R.call_tir(k.clip_grad_mask, (mask, dy), out_ty=R.Tensor((60,), "float32"))
            out = R.reshape(dx, (3, 20))
            R.output(out)
        return out

    after = CompressMasks()(forward_use_only())
    assert_same(tvm.relax.transform.DeadCodeElimination(["step"])(after), k.module(step=step))


def test_an_output_that_is_read_until_its_gradient_stays() -> None:
    k = Kernels(relu=RELU, grad=clip_grad((3, 20), 0.0, None))

    @R.function
    def step(x: R.Tensor((3, 20), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.relu, (x,), out_ty=R.Tensor((3, 20), "float32"))
            b = R.multiply(y, y)
            dx = R.call_tir(k.grad, (y, b), out_ty=R.Tensor((3, 20), "float32"))
            R.output(dx)
        return dx

    before = k.module(step=step)
    assert_same(CompressMasks()(before), before)


@pytest.mark.parametrize("size", [1, 8, 13, 60])
@pytest.mark.parametrize(("low", "high"), [(0.0, None), (0.0, 6.0), (-1.0, 1.0), (None, 2.0)])
def test_a_mask_lets_through_what_the_clamp_did(size: int, low: float | None, high: float | None) -> None:
    draw = np.random.default_rng(size).normal(scale=3.0, size=(2, size)).astype(np.float32)
    y = np.clip(draw[0], -np.inf if low is None else low, np.inf if high is None else high)
    k = Kernels(pack=pack_mask(size, low, high), grad=clip_grad_mask(size))
    block = tvm.relax.BlockBuilder()
    a, b = (tvm.relax.Var(n, tvm.relax.TensorType((size,), "float32")) for n in "ab")
    with block.function("step", [a, b], attrs={"num_input": 2}):
        with block.dataflow():
            mask = block.emit(
                tvm.relax.call_tir(k.pack, [a], tvm.relax.TensorType((mask_bytes(size),), "uint8"))
            )
            out = block.emit_output(
                tvm.relax.call_tir(k.grad, [mask, b], tvm.relax.TensorType((size,), "float32"))
            )
        block.emit_func_output(out)
    machine = Machine(k.module(step=block.get()["step"]))
    inside = (y > (-np.inf if low is None else low)) & (y < (np.inf if high is None else high))
    np.testing.assert_array_equal(machine.run("step", y, draw[1])[0], np.where(inside, draw[1], 0))


class Chain(nn.Module):
    """Convolutions with ReLU6 of which the plan below trains the first: the masks of all others are enough."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.nn.functional.relu6(layer(x))
        return self.head(x.mean([2, 3]))


@pytest.mark.parametrize(("make", "shape"), [(Chain, (4, 6, 7)), (Mixed, Mixed.shape)])
def test_gradients_are_those_of_the_plain_step(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    net, x = seeded(make), sample(*shape)
    mod = PruneBackward(UpdatePlan.from_channels({0: [0, 2]}))(derived(net, x))
    masked = CompressMasks()(mod)
    for plain, packed in zip(
        Machine(mod).run("step", x.numpy(), label(1)),
        Machine(masked).run("step", x.numpy(), label(1)),
        strict=True,
    ):
        np.testing.assert_array_equal(plain, packed)
