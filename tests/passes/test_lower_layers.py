"""LowerLayers: what becomes one kernel, and what does not."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.helpers import Kernels, assert_same, with_zeros
from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear
from tvm_tinytrain.passes.lower_layers import LowerLayers
from tvm_tinytrain.passes.state import Layer, get_layers, get_values, with_values


def test_convolution_takes_bias_and_clamp() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 5, 5), "float32"),
            w: R.Tensor((3, 2, 3, 3), "float32"),
            b: R.Tensor((3,), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w, padding=[1, 1, 1, 1])
                column = R.reshape(b, (1, 3, 1, 1))
                z = R.add(y, column)
                o = R.clip(z, 0.0, 6.0)
                R.output(o)
            return o

    spec = Conv2DSpec(2, 5, 5, 3, (3, 3), padding=(1, 1, 1, 1))
    k = Kernels(conv2d=conv2d(spec, bias=True, low=0.0, high=6.0))

    @R.function
    def predict(
        x: R.Tensor((1, 2, 5, 5), "float32"),
        w: R.Tensor((3, 2, 3, 3), "float32"),
        b: R.Tensor((3,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            o = R.call_tir(k.conv2d, (x, w, b), out_ty=R.Tensor((1, 3, 5, 5), "float32"))
            R.output(o)
        return o

    after = LowerLayers()(with_zeros(Before))
    assert_same(after, k.module(predict=predict))
    assert get_layers(after) == (Layer(0, "conv2d", "w", "b", (3, 2, 3, 3), 3 * 25 * 18),)


def test_intermediate_that_is_read_twice_ends_the_chain() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 4, 4), "float32"), w: R.Tensor((2, 2, 1, 1), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                z = R.nn.relu(y)
                o = R.add(z, y)
                R.output(o)
            return o

    k = Kernels(conv2d=conv2d(Conv2DSpec(2, 4, 4, 2, (1, 1))))

    @R.function
    def predict(x: R.Tensor((1, 2, 4, 4), "float32"), w: R.Tensor((2, 2, 1, 1), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.conv2d, (x, w), out_ty=R.Tensor((1, 2, 4, 4), "float32"))
            z = R.nn.relu(y)
            o = R.add(z, y)
            R.output(o)
        return o

    assert_same(LowerLayers()(with_zeros(Before)), k.module(predict=predict))


def test_bias_behind_the_clamp_and_residual_stay_outside() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 4), "float32"),
            w: R.Tensor((2, 1, 3, 3), "float32"),
            b: R.Tensor((2,), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w, padding=[1, 1, 1, 1], groups=2)
                z = R.nn.relu(y)
                r = R.add(z, x)
                column = R.reshape(b, (1, 2, 1, 1))
                o = R.add(r, column)
                R.output(o)
            return o

    k = Kernels(conv2d=conv2d(Conv2DSpec(2, 4, 4, 2, (3, 3), padding=(1, 1, 1, 1), groups=2), low=0.0))

    @R.function
    def predict(
        x: R.Tensor((1, 2, 4, 4), "float32"),
        w: R.Tensor((2, 1, 3, 3), "float32"),
        b: R.Tensor((2,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            z = R.call_tir(k.conv2d, (x, w), out_ty=R.Tensor((1, 2, 4, 4), "float32"))
            r = R.add(z, x)
            column = R.reshape(b, (1, 2, 1, 1))
            o = R.add(r, column)
            R.output(o)
        return o

    after = LowerLayers()(with_zeros(Before))
    assert_same(after, k.module(predict=predict))
    assert [(layer.bias, layer.depthwise) for layer in get_layers(after)] == [(None, True)]


def test_linear_as_torch_writes_it() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4), "float32"), w: R.Tensor((3, 4), "float32"), b: R.Tensor((3,), "float32")
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                t = R.permute_dims(w, axes=[1, 0])
                y = R.matmul(x, t)
                o = R.add(y, b)
                R.output(o)
            return o

    k = Kernels(linear=linear(LinearSpec(1, 4, 3), bias=True))

    @R.function
    def predict(x: R.Tensor((1, 4), "float32"), w: R.Tensor((3, 4), "float32"), b: R.Tensor((3,), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            o = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            R.output(o)
        return o

    assert_same(LowerLayers()(with_zeros(Before)), k.module(predict=predict))


def test_views_between_product_bias_and_clamp_come_behind_the_kernel() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 6, 4), "float32"), w: R.Tensor((4, 3), "float32"), b: R.Tensor((3,), "float32")
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.matmul(x, w)
                rows = R.reshape(y, (1, 2, 3, 3))
                z = R.add(b, rows)
                view = R.reshape(z, (6, 3))
                c = R.clip(view, 0.0, 6.0)
                o = R.reshape(c, (1, 18))
                R.output(o)
            return o

    k = Kernels(linear=linear(LinearSpec(6, 4, 3), bias=True, low=0.0, high=6.0))

    @R.function
    def predict(
        x: R.Tensor((1, 6, 4), "float32"), w: R.Tensor((3, 4), "float32"), b: R.Tensor((3,), "float32")
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            rows = R.reshape(x, (6, 4))
            y = R.call_tir(k.linear, (rows, w, b), out_ty=R.Tensor((6, 3), "float32"))
            o = R.reshape(y, (1, 18))
            R.output(o)
        return o

    assert_same(LowerLayers()(with_zeros(Before)), k.module(predict=predict))


def test_a_view_that_divides_the_channels_ends_the_chain() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 4), "float32"), w: R.Tensor((4, 6), "float32"), b: R.Tensor((2,), "float32")
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.matmul(x, w)
                heads = R.reshape(y, (1, 3, 2))
                o = R.add(heads, b)
                R.output(o)
            return o

    assert [(la.weight, la.bias) for la in layers_of(Before)] == [("w", None)]


def test_a_bias_stored_as_a_column_becomes_a_vector() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 4), "float32"),
            w: R.Tensor((2, 2, 1, 1), "float32"),
            b: R.Tensor((2, 1, 1), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w)
                z = R.add(y, b)
                o = R.multiply(z, b)
                R.output(o)
            return o

    k = Kernels(conv2d=conv2d(Conv2DSpec(2, 4, 4, 2, (1, 1)), bias=True))

    @R.function
    def predict(
        x: R.Tensor((1, 2, 4, 4), "float32"),
        w: R.Tensor((2, 2, 1, 1), "float32"),
        b: R.Tensor((2,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            column = R.reshape(b, (2, 1, 1))
            z = R.call_tir(k.conv2d, (x, w, b), out_ty=R.Tensor((1, 2, 4, 4), "float32"))
            o = R.multiply(z, column)
            R.output(o)
        return o

    after = LowerLayers()(with_zeros(Before))
    assert_same(after, k.module(predict=predict))
    assert get_layers(after)[0].bias == "b" and get_values(after)["b"].shape == (2,)


@I.ir_module
class StoredTransposed:
    """A matrix stored as [in, out], used twice, on a tensor of rank three."""

    @R.function
    def main(x: R.Tensor((1, 2, 4), "float32"), w: R.Tensor((4, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.matmul(x, w)
            o = R.matmul(y, w)
            R.output(o)
        return o


def test_matrix_stored_transposed_is_turned_once() -> None:
    k = Kernels(linear=linear(LinearSpec(2, 4, 4)))

    @R.function
    def predict(x: R.Tensor((1, 2, 4), "float32"), w: R.Tensor((4, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.reshape(x, (2, 4))
            b = R.call_tir(k.linear, (a, w), out_ty=R.Tensor((2, 4), "float32"))
            c = R.reshape(b, (1, 2, 4))
            d = R.reshape(c, (2, 4))
            e = R.call_tir(k.linear, (d, w), out_ty=R.Tensor((2, 4), "float32"))
            o = R.reshape(e, (1, 2, 4))
            R.output(o)
        return o

    value = np.arange(16, dtype=np.float32).reshape(4, 4)
    after = LowerLayers()(with_values(StoredTransposed, {"w": value}))
    assert_same(after, k.module(predict=predict))
    np.testing.assert_array_equal(get_values(after)["w"], value.T)
    assert [layer.weight for layer in get_layers(after)] == ["w"]


def test_matrix_that_is_read_in_both_forms_stays_as_it_is() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32"), w: R.Tensor((3, 4), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                t = R.permute_dims(w, axes=[1, 0])
                code = R.matmul(x, t)
                o = R.matmul(code, w)
                R.output(o)
            return o

    k = Kernels(linear=linear(LinearSpec(1, 4, 3)))

    @R.function
    def predict(x: R.Tensor((1, 4), "float32"), w: R.Tensor((3, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            code = R.call_tir(k.linear, (x, w), out_ty=R.Tensor((1, 3), "float32"))
            o = R.matmul(code, w)
            R.output(o)
        return o

    assert_same(LowerLayers()(with_zeros(Before)), k.module(predict=predict))


def test_conv1d_shares_the_kernel_of_conv2d() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 2, 8), "float32"), w: R.Tensor((2, 2, 3), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv1d(x, w, padding=[1, 1])
                o = R.nn.conv1d(y, w, padding=[1, 1])
                R.output(o)
            return o

    k = Kernels(conv2d=conv2d(Conv2DSpec(2, 1, 8, 2, (1, 3), padding=(0, 1, 0, 1))))

    @R.function
    def predict(x: R.Tensor((1, 2, 8), "float32"), w: R.Tensor((2, 2, 1, 3), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.reshape(x, (1, 2, 1, 8))
            b = R.call_tir(k.conv2d, (a, w), out_ty=R.Tensor((1, 2, 1, 8), "float32"))
            c = R.reshape(b, (1, 2, 8))
            d = R.reshape(c, (1, 2, 1, 8))
            e = R.call_tir(k.conv2d, (d, w), out_ty=R.Tensor((1, 2, 1, 8), "float32"))
            o = R.reshape(e, (1, 2, 8))
            R.output(o)
        return o

    after = LowerLayers()(with_zeros(Before))
    assert_same(after, k.module(predict=predict))
    assert get_layers(after)[0].weight_shape == get_values(after)["w"].shape == (2, 2, 1, 3)


def layers_of(before: tvm.IRModule) -> tuple[Layer, ...]:
    return get_layers(LowerLayers()(with_zeros(before)))


def test_ids_count_in_order_of_execution() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 4, 4), "float32"),
            last: R.Tensor((2, 32), "float32"),
            first: R.Tensor((2, 2, 1, 1), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, first)
                f = R.reshape(y, (1, 32))
                t = R.permute_dims(last, axes=[1, 0])
                o = R.matmul(f, t)
                R.output(o)
            return o

    assert [(layer.id, layer.kind, layer.weight) for layer in layers_of(Before)] == [
        (0, "conv2d", "first"),
        (1, "linear", "last"),
    ]


def test_layouts_other_than_nchw_are_refused() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4, 4, 2), "float32"), w: R.Tensor((3, 2, 1, 1), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                o = R.nn.conv2d(x, w, data_layout="NHWC", out_layout="NHWC")
                R.output(o)
            return o

    with pytest.raises(UnsupportedOperatorError, match=r"conv2d: found layouts .*NHWC.*; allowed NCHW"):
        layers_of(Before)


def test_batches_are_refused() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((2, 2, 4, 4), "float32"), w: R.Tensor((3, 2, 1, 1), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                o = R.nn.conv2d(x, w)
                R.output(o)
            return o

    with pytest.raises(UnsupportedOperatorError, match="conv2d: found batch of 2; allowed 1"):
        layers_of(Before)
