"""PruneBackward: what a plan keeps of the backward graph, and plans that do not fit the network."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tvm.script import relax as R

from tests.passes import perceptron
from tests.passes.helpers import Kernels, assert_same
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.linear import linear_weight_grad
from tvm_tinytrain.passes.prune_backward import PruneBackward
from tvm_tinytrain.passes.state import get_roles, get_values
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan


def test_last_layer_needs_no_input_gradient() -> None:
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
        R.func_attr({"num_input": 2, "tt.gradients": '[{"param": "v", "channels": null, "inputs": null}]'})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            dz = R.call_tir(k.softmax_cross_entropy_grad, (z, label), out_ty=R.Tensor((1, 2), "float32"))
            dv = R.call_tir(k.linear_weight_grad, (y, dz), out_ty=R.Tensor((2, 3), "float32"))
            out = (loss, dv)
            R.output(out)
        return out

    after = PruneBackward(UpdatePlan.from_channels({1: (0, 1)}))(perceptron.with_gradients())
    assert_same(after, k.module(predict=perceptron.predict_function(k), step=step))
    assert set(get_values(after)) == {"w", "b", "v"}


def test_channels_become_constant_lists() -> None:
    backward = {
        **{
            n: perceptron.BACKWARD[n]
            for n in ("softmax_cross_entropy_grad", "linear_input_grad", "clip_grad")
        },
        "linear_weight_grad2": linear_weight_grad(perceptron.FIRST, channels=2, inputs=3),
        "bias_grad1": bias_grad(1, 3, 1, channels=2),
    }
    k = Kernels(**perceptron.FORWARD, **backward)

    @R.function
    def step(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
        channels_0: R.Tensor((2,), "int32"),
        inputs_0: R.Tensor((3,), "int32"),
    ):
        R.func_attr(
            {
                "num_input": 2,
                "tt.gradients": '[{"param": "w", "channels": "channels_0", "inputs": "inputs_0"}, '
                '{"param": "b", "channels": "channels_0", "inputs": null}]',
            }
        )
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            dz = R.call_tir(k.softmax_cross_entropy_grad, (z, label), out_ty=R.Tensor((1, 2), "float32"))
            dy = R.call_tir(k.linear_input_grad, (dz, v), out_ty=R.Tensor((1, 3), "float32"))
            masked = R.call_tir(k.clip_grad, (y, dy), out_ty=R.Tensor((1, 3), "float32"))
            dw = R.call_tir(
                k.linear_weight_grad2, (x, masked, channels_0, inputs_0), out_ty=R.Tensor((2, 3), "float32")
            )
            flat = R.reshape(masked, (1, 3, 1))
            db = R.call_tir(k.bias_grad1, (flat, channels_0), out_ty=R.Tensor((2,), "float32"))
            out = (loss, dw, db)
            R.output(out)
        return out

    after = PruneBackward(UpdatePlan((LayerUpdate(0, (0, 2), (0, 1, 3)),)))(perceptron.with_gradients())
    assert_same(after, k.module(predict=perceptron.predict_function(k), step=step))
    assert get_roles(after) == {**perceptron.ROLES, "channels_0": "list", "inputs_0": "list"}
    np.testing.assert_array_equal(get_values(after)["channels_0"], np.array([0, 2], np.int32))
    np.testing.assert_array_equal(get_values(after)["inputs_0"], np.array([0, 1, 3], np.int32))


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (LayerUpdate(0, (1,), weight=False), {"b": "channels_0"}),
        (LayerUpdate(0, (1,), bias=False), {"w": "channels_0"}),
        (LayerUpdate(0, (0, 1, 2)), {"w": None, "b": None}),
        (LayerUpdate(1, (0,)), {"v": "channels_1"}),  # a layer without bias
    ],
)
def test_what_is_trained(update: LayerUpdate, expected: dict[str, str | None]) -> None:
    after = PruneBackward(UpdatePlan((update,)))(perceptron.with_gradients())
    described = json.loads(str(after["step"].attrs["tt.gradients"]))
    assert {d["param"]: d["channels"] for d in described} == expected


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (UpdatePlan(), "update plan: found no layers; allowed at least one layer"),
        (UpdatePlan.from_channels({2: (0,)}), "layer 2: found not in the network; allowed 0 to 1"),
        (UpdatePlan.from_channels({0: (1, 3)}), r"layer 0 \(w\): found channel 3; allowed 0 to 2"),
        (
            UpdatePlan((LayerUpdate(1, (0,), (0, 3)),)),
            r"layer 1 \(v\): found input channel 3; allowed 0 to 2",
        ),
        (
            UpdatePlan((LayerUpdate(1, (0,), weight=False),)),
            r"layer 1 \(v\): found only a bias to train; allowed its weight",
        ),
    ],
)
def test_plans_that_do_not_fit(plan: UpdatePlan, text: str) -> None:
    with pytest.raises(PlanError, match="prune backward: " + text):
        PruneBackward(plan)(perceptron.with_gradients())
