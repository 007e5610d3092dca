"""ReuseDeadOperands: which operands may be overwritten, and that a library which does so computes the same."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import relax as R

from tests.passes.helpers import Kernels, Machine, assert_same
from tvm_tinytrain.passes.kernels.activations import Activation, activation
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.slicing import slice_grad
from tvm_tinytrain.passes.reuse_dead_operands import ReuseDeadOperands, elementwise_in, overwrite_operand

SHAPE = (3, 20)
EXP = activation(Activation("exp"), SHAPE)


def test_a_dead_operand_is_overwritten_and_an_input_is_not() -> None:
    k = Kernels(exp=EXP)

    @R.function
    def predict(x: R.Tensor((3, 20), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.exp, (x,), out_ty=R.Tensor((3, 20), "float32"))
            z = R.call_tir(k.exp, (y,), out_ty=R.Tensor((3, 20), "float32"))
            R.output(z)
        return z

    after = ReuseDeadOperands()(k.module(predict=predict))
    calls = [
        b.value.op.name for b in after["predict"].body.blocks[0].bindings if isinstance(b.value, relax.Call)
    ]
    assert calls == ["relax.call_tir", "relax.call_tir_inplace"]
    relax.analysis.well_formed(after)
    x = np.linspace(-2, 0.5, 60, dtype=np.float32).reshape(SHAPE)
    np.testing.assert_array_equal(
        Machine(after).run("predict", x)[0], Machine(k.module(predict=predict)).run("predict", x)[0]
    )


def test_an_operand_that_is_read_again_or_through_a_view_or_twice_stays() -> None:
    k = Kernels(exp=EXP, grad=clip_grad(SHAPE, 0.0, None))

    @R.function
    def predict(x: R.Tensor((3, 20), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.exp, (x,), out_ty=R.Tensor((3, 20), "float32"))
            view = R.reshape(y, (60,))
            z = R.call_tir(k.exp, (y,), out_ty=R.Tensor((3, 20), "float32"))
            back = R.reshape(view, (3, 20))
            both = R.call_tir(k.grad, (back, back), out_ty=R.Tensor((3, 20), "float32"))
            out = (both, z)
            R.output(out)
        return out

    before = k.module(predict=predict)
    assert_same(ReuseDeadOperands()(before), before)


def test_a_kernel_that_reads_elsewhere_than_it_writes_is_not_elementwise() -> None:
    kernel = slice_grad((3, 20), (0, 0), (1, 1), (3, 20))
    assert elementwise_in(EXP, 0)
    assert elementwise_in(kernel, 0)
    assert not elementwise_in(slice_grad((3, 20), (0, 1), (1, 1), (3, 19)), 0)


@pytest.mark.parametrize("position", [0, 1])
def test_the_kernel_loses_its_result_and_says_which_argument_it_updates(position: int) -> None:
    kernel = overwrite_operand(clip_grad(SHAPE, 0.0, 6.0), position)
    assert len(kernel.params) == 2
    assert str(kernel.attrs["tt.args"]).split(",")[position] == "inout"
    y, dy = np.random.default_rng(0).normal(scale=4, size=(2, *SHAPE)).astype(np.float32)
    args = [tvm.runtime.tensor(a) for a in (y, dy)]
    built = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), "llvm")
    built["main"](*args)
    np.testing.assert_array_equal(args[position].numpy(), np.where((y > 0) & (y < 6), dy, 0))
