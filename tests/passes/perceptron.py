"""Two linear layers as a module by hand, the same before and after each pass of the backward phase: what structural tests read.

``x[1, 4] → w[3, 4], b[3], ReLU → v[2, 3] → cross-entropy``; layer 0 has weight ``w`` and bias ``b``, layer 1 weight ``v``.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import relax as R

from tests.passes.helpers import Kernels
from tvm_tinytrain.passes.kernels import losses
from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear, linear_input_grad, linear_weight_grad
from tvm_tinytrain.passes.state import Layer, with_layers, with_roles, with_values

FIRST, LAST = LinearSpec(1, 4, 3), LinearSpec(1, 3, 2)
FORWARD = {
    "linear": linear(FIRST, bias=True, low=0.0),
    "linear1": linear(LAST),
    "softmax_cross_entropy": losses.softmax_cross_entropy(2),
}
BACKWARD = {
    "softmax_cross_entropy_grad": losses.softmax_cross_entropy_grad(2),
    "linear_input_grad": linear_input_grad(LAST),
    "linear_weight_grad": linear_weight_grad(LAST),
    "clip_grad": clip_grad((1, 3), 0.0, None),
    "linear_weight_grad1": linear_weight_grad(FIRST),
    "bias_grad": bias_grad(1, 3, 1),
}
LAYERS = (Layer(0, "linear", "w", "b", (3, 4), 12), Layer(1, "linear", "v", None, (2, 3), 6))
VALUES = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.array([10, 11, 12], np.float32),
    "v": np.arange(20, 26, dtype=np.float32).reshape(2, 3),
}
ROLES = {"x": "input", "label": "label"}


def predict_function(k: Kernels) -> tvm.relax.Function:
    """``predict`` as LowerLayers leaves it."""

    @R.function
    def predict(
        x: R.Tensor((1, 4), "float32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            R.output(z)
        return z

    return predict


def loss_function(k: Kernels) -> tvm.relax.Function:
    """``step`` as AppendLoss leaves it."""

    @R.function
    def step(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            R.output(loss)
        return loss

    return step


def gradient_function(k: Kernels) -> tvm.relax.Function:
    """``step`` as DeriveBackward leaves it."""

    @R.function
    def step(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
    ):
        R.func_attr({"num_input": 2, "tt.gradients": '["w", "b", "v"]'})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            dz = R.call_tir(k.softmax_cross_entropy_grad, (z, label), out_ty=R.Tensor((1, 2), "float32"))
            dy = R.call_tir(k.linear_input_grad, (dz, v), out_ty=R.Tensor((1, 3), "float32"))
            dv = R.call_tir(k.linear_weight_grad, (y, dz), out_ty=R.Tensor((2, 3), "float32"))
            masked = R.call_tir(k.clip_grad, (y, dy), out_ty=R.Tensor((1, 3), "float32"))
            dw = R.call_tir(k.linear_weight_grad1, (x, masked), out_ty=R.Tensor((3, 4), "float32"))
            flat = R.reshape(masked, (1, 3, 1))
            db = R.call_tir(k.bias_grad, (flat,), out_ty=R.Tensor((3,), "float32"))
            out = (loss, dw, db, dv)
            R.output(out)
        return out

    return step


def before_derivation() -> tvm.IRModule:
    """``predict`` and ``step`` with its loss."""
    k = Kernels(**FORWARD)
    return _annotated(k.module(predict=predict_function(k), step=loss_function(k)))


def with_gradients() -> tvm.IRModule:
    """``predict`` and ``step`` with all gradients."""
    k = Kernels(**FORWARD, **BACKWARD)
    return _annotated(k.module(predict=predict_function(k), step=gradient_function(k)))


def _annotated(mod: tvm.IRModule) -> tvm.IRModule:
    return with_layers(with_roles(with_values(mod, VALUES), ROLES), LAYERS)
