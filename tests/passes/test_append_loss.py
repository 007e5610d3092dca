"""AppendLoss: what `step` begins as, and which outputs a loss takes."""

from __future__ import annotations

from typing import Any

import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.helpers import Kernels, assert_same, with_zeros
from tvm_tinytrain.config import MSE, BinaryCrossEntropy, CrossEntropy
from tvm_tinytrain.errors import ShapeError
from tvm_tinytrain.passes.append_loss import AppendLoss
from tvm_tinytrain.passes.kernels import losses
from tvm_tinytrain.passes.state import get_roles


@I.ir_module
class Classifier:
    @R.function
    def predict(x: R.Tensor((1, 3), "float32"), w: R.Tensor((1, 3), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.multiply(x, w)
            R.output(y)
        return y


def test_cross_entropy_reads_an_integer_label() -> None:
    k = Kernels(softmax_cross_entropy=losses.softmax_cross_entropy(3, 0.1))

    @R.function
    def step(x: R.Tensor((1, 3), "float32"), label: R.Tensor((1,), "int32"), w: R.Tensor((1, 3), "float32")):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.multiply(x, w)
            loss = R.call_tir(k.softmax_cross_entropy, (y, label), out_ty=R.Tensor((1,), "float32"))
            R.output(loss)
        return loss

    after = AppendLoss(CrossEntropy(0.1))(with_zeros(Classifier, "predict"))
    assert_same(after, k.module(predict=Classifier["predict"], step=step))
    assert get_roles(after) == {"x": "input", "label": "label"}


@pytest.mark.parametrize(("loss", "kind"), [(MSE(), "mse"), (BinaryCrossEntropy(), "bce")])
def test_elementwise_losses_read_a_target_of_the_outputs_shape(loss: Any, kind: str) -> None:
    k = Kernels(**{f"{kind}_loss": losses.elementwise_loss(kind, 3)})
    kernel = getattr(k, f"{kind}_loss")

    @R.function
    def step(
        x: R.Tensor((1, 3), "float32"), label: R.Tensor((1, 3), "float32"), w: R.Tensor((1, 3), "float32")
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.multiply(x, w)
            flat = R.reshape(y, (3,))
            target = R.reshape(label, (3,))
            value = R.call_tir(kernel, (flat, target), out_ty=R.Tensor((1,), "float32"))
            R.output(value)
        return value

    after = AppendLoss(loss)(with_zeros(Classifier, "predict"))
    assert_same(after, k.module(predict=Classifier["predict"], step=step))


def test_cross_entropy_of_a_feature_map_is_refused() -> None:
    @I.ir_module
    class Map:
        @R.function
        def predict(x: R.Tensor((1, 3, 2, 2), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.relu(x)
                R.output(y)
            return y

    with pytest.raises(
        ShapeError, match=r"network output: found shape \(1, 3, 2, 2\); allowed \[1, classes\]"
    ):
        AppendLoss(CrossEntropy())(with_zeros(Map, "predict"))


def test_cross_entropy_of_a_single_output_is_refused() -> None:
    @I.ir_module
    class Single:
        @R.function
        def predict(x: R.Tensor((1, 1), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.relu(x)
                R.output(y)
            return y

    with pytest.raises(ShapeError, match=r"output: found one class; allowed .*2 or more.*BinaryCrossEntropy"):
        AppendLoss(CrossEntropy())(with_zeros(Single, "predict"))
    AppendLoss(BinaryCrossEntropy())(with_zeros(Single, "predict"))


def test_predict_is_left_alone() -> None:
    before = with_zeros(Classifier, "predict")
    after = AppendLoss(CrossEntropy())(before)
    tvm.ir.assert_structural_equal(after["predict"], before["predict"])
