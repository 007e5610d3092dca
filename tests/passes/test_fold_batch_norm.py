"""FoldBatchNorm: which batch norms a convolution takes in, and what the others become."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.helpers import Kernels, assert_same, with_zeros
from tvm_tinytrain.passes.fold_batch_norm import FoldBatchNorm
from tvm_tinytrain.passes.state import get_values, with_values

GAMMA = np.array([2.0, -1.0], np.float32)
BETA = np.array([0.5, 3.0], np.float32)
MEAN = np.array([1.0, -2.0], np.float32)
VARIANCE = np.array([3.0, 8.0], np.float32)
NORM = {"bn_weight": GAMMA, "bn_bias": BETA, "bn_mean": MEAN, "bn_var": VARIANCE}
RSTD = 1.0 / np.sqrt(VARIANCE + 1.0)  # epsilon is 1 below: σ is 2 and 3


@I.ir_module
class BehindConvolution:
    @R.function
    def main(
        x: R.Tensor((1, 1, 3, 3), "float32"),
        conv_weight: R.Tensor((2, 1, 1, 1), "float32"),
        bn_weight: R.Tensor((2,), "float32"),
        bn_bias: R.Tensor((2,), "float32"),
        bn_mean: R.Tensor((2,), "float32"),
        bn_var: R.Tensor((2,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.nn.conv2d(x, conv_weight)
            n = R.nn.batch_norm(y, bn_weight, bn_bias, bn_mean, bn_var, axis=1, epsilon=1.0)
            o = n[0]
            R.output(o)
        return o


def test_convolution_takes_it_in() -> None:
    @R.function
    def main(
        x: R.Tensor((1, 1, 3, 3), "float32"),
        conv_weight: R.Tensor((2, 1, 1, 1), "float32"),
        bn_weight: R.Tensor((2,), "float32"),
        bn_bias: R.Tensor((2,), "float32"),
        bn_mean: R.Tensor((2,), "float32"),
        bn_var: R.Tensor((2,), "float32"),
        conv_bias: R.Tensor((2,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.nn.conv2d(x, conv_weight)
            column = R.reshape(conv_bias, (1, 2, 1, 1))
            o = R.add(y, column)
            R.output(o)
        return o

    weight = np.array([4.0, 6.0], np.float32).reshape(2, 1, 1, 1)
    after = FoldBatchNorm()(with_values(BehindConvolution, {"conv_weight": weight, **NORM}))
    assert_same(after, Kernels().module(main=main))
    values = get_values(after)
    np.testing.assert_allclose(values["conv_weight"].ravel(), weight.ravel() * GAMMA * RSTD, rtol=1e-6)
    np.testing.assert_allclose(values["conv_bias"], BETA - MEAN * GAMMA * RSTD, rtol=1e-6)


def test_bias_of_the_convolution_is_scaled_too() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 1, 3, 3), "float32"),
            conv_weight: R.Tensor((2, 1, 1, 1), "float32"),
            conv_bias: R.Tensor((2,), "float32"),
            bn_weight: R.Tensor((2,), "float32"),
            bn_bias: R.Tensor((2,), "float32"),
            bn_mean: R.Tensor((2,), "float32"),
            bn_var: R.Tensor((2,), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, conv_weight)
                column = R.reshape(conv_bias, (1, 2, 1, 1))
                z = R.add(y, column)
                n = R.nn.batch_norm(z, bn_weight, bn_bias, bn_mean, bn_var, axis=1, epsilon=1.0)
                o = n[0]
                R.output(o)
            return o

    @R.function
    def main(
        x: R.Tensor((1, 1, 3, 3), "float32"),
        conv_weight: R.Tensor((2, 1, 1, 1), "float32"),
        conv_bias: R.Tensor((2,), "float32"),
        bn_weight: R.Tensor((2,), "float32"),
        bn_bias: R.Tensor((2,), "float32"),
        bn_mean: R.Tensor((2,), "float32"),
        bn_var: R.Tensor((2,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.nn.conv2d(x, conv_weight)
            column = R.reshape(conv_bias, (1, 2, 1, 1))
            o = R.add(y, column)
            R.output(o)
        return o

    weight = np.array([4.0, 6.0], np.float32).reshape(2, 1, 1, 1)
    bias = np.array([7.0, 9.0], np.float32)
    after = FoldBatchNorm()(with_values(Before, {"conv_weight": weight, "conv_bias": bias, **NORM}))
    assert_same(after, Kernels().module(main=main))
    np.testing.assert_allclose(get_values(after)["conv_bias"], BETA + (bias - MEAN) * GAMMA * RSTD, rtol=1e-6)


def test_without_convolution_scale_and_shift_stay() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 2, 3, 3), "float32"),
            bn_weight: R.Tensor((2,), "float32"),
            bn_bias: R.Tensor((2,), "float32"),
            bn_mean: R.Tensor((2,), "float32"),
            bn_var: R.Tensor((2,), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                n = R.nn.batch_norm(x, bn_weight, bn_bias, bn_mean, bn_var, axis=1, epsilon=1.0)
                o = n[0]
                R.output(o)
            return o

    after = FoldBatchNorm()(with_values(Before, NORM))
    values = get_values(after)
    np.testing.assert_allclose(values["bn_rstd"], RSTD, rtol=1e-6)
    np.testing.assert_allclose(values["bn_shift"], -MEAN * RSTD, rtol=1e-6)
    np.testing.assert_array_equal(values["bn_weight"], GAMMA)


def test_convolution_that_is_read_twice_keeps_its_weight() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((1, 1, 3, 3), "float32"),
            conv_weight: R.Tensor((2, 1, 1, 1), "float32"),
            bn_weight: R.Tensor((2,), "float32"),
            bn_bias: R.Tensor((2,), "float32"),
            bn_mean: R.Tensor((2,), "float32"),
            bn_var: R.Tensor((2,), "float32"),
        ):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, conv_weight)
                n = R.nn.batch_norm(y, bn_weight, bn_bias, bn_mean, bn_var, axis=1, epsilon=1.0)
                m = n[0]
                o = R.add(m, y)
                R.output(o)
            return o

    weight = np.array([4.0, 6.0], np.float32).reshape(2, 1, 1, 1)
    after = FoldBatchNorm()(with_values(Before, {"conv_weight": weight, **NORM}))
    np.testing.assert_array_equal(get_values(after)["conv_weight"], weight)
    assert "conv_bias" not in get_values(after)


def test_module_without_batch_norm_is_untouched() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32"), w: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                o = R.add(x, w)
                R.output(o)
            return o

    before = with_zeros(Before)
    tvm.ir.assert_structural_equal(FoldBatchNorm()(before), before)
