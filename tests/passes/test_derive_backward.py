"""DeriveBackward: which adjoints are made, in which order, and what is not made."""

from __future__ import annotations

import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes import perceptron
from tests.passes.helpers import Kernels, assert_same, gradient_names
from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.derive_backward import DeriveBackward
from tvm_tinytrain.passes.kernels import losses
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_input_grad, conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec


def test_input_gradient_first_then_weight_then_bias() -> None:
    assert_same(DeriveBackward()(perceptron.before_derivation()), perceptron.with_gradients())


def test_nothing_in_front_of_the_wanted_parameters() -> None:
    needed = ("softmax_cross_entropy_grad", "linear_weight_grad")
    k = Kernels(**perceptron.FORWARD, **{name: perceptron.BACKWARD[name] for name in needed})

    @R.function
    def step(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
    ):
        R.func_attr({"num_input": 2, "tt.gradients": '["v"]'})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            dz = R.call_tir(k.softmax_cross_entropy_grad, (z, label), out_ty=R.Tensor((1, 2), "float32"))
            dv = R.call_tir(k.linear_weight_grad, (y, dz), out_ty=R.Tensor((2, 3), "float32"))
            out = (loss, dv)
            R.output(out)
        return out

    after = DeriveBackward(["v"])(perceptron.before_derivation())
    assert_same(after, k.module(predict=perceptron.predict_function(k), step=step))


def test_adjoints_of_a_value_that_is_read_twice_are_summed() -> None:
    spec = Conv2DSpec(2, 3, 3, 2, (1, 1))
    forward = {"conv2d": conv2d(spec), "mse_loss": losses.elementwise_loss("mse", 18)}
    before = Kernels(**forward)

    @R.function
    def residual(
        x: R.Tensor((1, 2, 3, 3), "float32"),
        label: R.Tensor((18,), "float32"),
        a: R.Tensor((2, 2, 1, 1), "float32"),
        b: R.Tensor((2, 2, 1, 1), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.call_tir(before.conv2d, (x, a), out_ty=R.Tensor((1, 2, 3, 3), "float32"))
            z = R.call_tir(before.conv2d, (y, b), out_ty=R.Tensor((1, 2, 3, 3), "float32"))
            s = R.add(z, y)
            flat = R.reshape(s, (18,))
            loss = R.call_tir(before.mse_loss, (flat, label), out_ty=R.Tensor((1,), "float32"))
            R.output(loss)
        return loss

    k = Kernels(
        **forward,
        mse_loss_grad=losses.elementwise_loss_grad("mse", 18),
        conv2d_input_grad=conv2d_input_grad(spec),
        conv2d_weight_grad=conv2d_weight_grad(spec),
    )

    @R.function
    def step(
        x: R.Tensor((1, 2, 3, 3), "float32"),
        label: R.Tensor((18,), "float32"),
        a: R.Tensor((2, 2, 1, 1), "float32"),
        b: R.Tensor((2, 2, 1, 1), "float32"),
    ):
        R.func_attr({"num_input": 2, "tt.gradients": '["a"]'})
        with R.dataflow():
            y = R.call_tir(k.conv2d, (x, a), out_ty=R.Tensor((1, 2, 3, 3), "float32"))
            z = R.call_tir(k.conv2d, (y, b), out_ty=R.Tensor((1, 2, 3, 3), "float32"))
            s = R.add(z, y)
            flat = R.reshape(s, (18,))
            loss = R.call_tir(k.mse_loss, (flat, label), out_ty=R.Tensor((1,), "float32"))
            dflat = R.call_tir(k.mse_loss_grad, (flat, label), out_ty=R.Tensor((18,), "float32"))
            ds = R.reshape(dflat, (1, 2, 3, 3))
            through = R.call_tir(k.conv2d_input_grad, (ds, b), out_ty=R.Tensor((1, 2, 3, 3), "float32"))
            dy = R.add(ds, through)
            da = R.call_tir(k.conv2d_weight_grad, (x, dy), out_ty=R.Tensor((2, 2, 1, 1), "float32"))
            out = (loss, da)
            R.output(out)
        return out

    assert_same(DeriveBackward(["a"])(before.module(step=residual)), k.module(step=step))


@I.ir_module
class Sorted:
    """An operator without gradient between `a` and `b`."""

    @R.function
    def step(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1, 4), "float32"),
        a: R.Tensor((1, 4), "float32"),
        b: R.Tensor((1, 4), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.multiply(x, a)
            s = R.sort(y, axis=1)
            z = R.add(s, b)
            loss = R.sum(z)
            R.output(loss)
        return loss


def test_operator_without_gradient_on_the_path_is_an_error() -> None:
    text = "derive backward: relax.sort at s: found no gradient; allowed operators of the gradient table; select layers"
    with pytest.raises(UnsupportedOperatorError, match=text):
        DeriveBackward(["a"])(_with_loss(Sorted))


def test_operator_without_gradient_elsewhere_is_none() -> None:
    after = DeriveBackward(["b"])(_with_loss(Sorted))
    assert gradient_names(after) == ["b"]
    assert after["step"].script().count("sort") == 1


def _with_loss(mod: tvm.IRModule) -> tvm.IRModule:
    """Behind `loss` the kernel that reverse mode begins at."""
    from tvm_tinytrain.passes.rewriting import bindings, rebuild

    def body(r):  # type: ignore[no-untyped-def]
        for b in bindings(r.func)[:-1]:
            r.keep(b)
        z = r.look(bindings(r.func)[-2].var)
        flat, target = (r.emit(tvm.relax.op.reshape(v, (4,))) for v in (z, r.func.params[1]))
        return r.kernel(losses.elementwise_loss("mse", 4), [flat, target], (1,), "loss")

    return rebuild(mod, "step", body, attrs={"num_input": 2})
