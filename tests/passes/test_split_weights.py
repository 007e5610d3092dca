"""SplitWeights: trained rows beside the weight in flash."""

from __future__ import annotations

import json

import numpy as np
import tvm
from tvm.script import relax as R

from tests.passes import perceptron
from tests.passes.helpers import Kernels, assert_same, derived
from tests.passes.networks import Mixed, Twice, sample, seeded
from tvm_tinytrain.passes.kernels import rows
from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.linear import linear_weight_grad
from tvm_tinytrain.passes.prune_backward import PruneBackward
from tvm_tinytrain.passes.split_weights import SplitWeights
from tvm_tinytrain.passes.state import get_roles, get_values
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan


def split(plan: UpdatePlan) -> tvm.IRModule:
    return SplitWeights()(PruneBackward(plan)(perceptron.with_gradients()))


def test_trained_rows_are_computed_again_behind_the_layer() -> None:
    kept = ("softmax_cross_entropy_grad", "linear_input_grad", "clip_grad")
    k = Kernels(
        **perceptron.FORWARD,
        **{name: perceptron.BACKWARD[name] for name in kept},
        linear_weight_grad2=linear_weight_grad(perceptron.FIRST, channels=2),
        bias_grad1=bias_grad(1, 3, 1, channels=2),
        linear_rows=rows.linear_rows(perceptron.FIRST, 2, bias="rows", low=0.0),
    )

    @R.function
    def predict(
        x: R.Tensor((1, 4), "float32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
        w_rows: R.Tensor((2, 4), "float32"),
        b_rows: R.Tensor((2,), "float32"),
        channels_0: R.Tensor((2,), "int32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            y2 = R.call_tir_inplace(
                k.linear_rows,
                (x, w_rows, b_rows, channels_0, y),
                inplace_indices=[4],
                out_ty=R.Tensor((1, 3), "float32"),
            )
            z = R.call_tir(k.linear1, (y2, v), out_ty=R.Tensor((1, 2), "float32"))
            R.output(z)
        return z

    @R.function
    def step(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
        channels_0: R.Tensor((2,), "int32"),
        w_rows: R.Tensor((2, 4), "float32"),
        b_rows: R.Tensor((2,), "float32"),
    ):
        R.func_attr(
            {
                "num_input": 2,
                "tt.gradients": '[{"param": "w_rows", "channels": "channels_0", "inputs": null, "rows": true}, '
                '{"param": "b_rows", "channels": "channels_0", "inputs": null, "rows": true}]',
            }
        )
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            y2 = R.call_tir_inplace(
                k.linear_rows,
                (x, w_rows, b_rows, channels_0, y),
                inplace_indices=[4],
                out_ty=R.Tensor((1, 3), "float32"),
            )
            z = R.call_tir(k.linear1, (y2, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            dz = R.call_tir(k.softmax_cross_entropy_grad, (z, label), out_ty=R.Tensor((1, 2), "float32"))
            dy = R.call_tir(k.linear_input_grad, (dz, v), out_ty=R.Tensor((1, 3), "float32"))
            masked = R.call_tir(k.clip_grad, (y2, dy), out_ty=R.Tensor((1, 3), "float32"))
            dw = R.call_tir(
                k.linear_weight_grad2, (x, masked, channels_0), out_ty=R.Tensor((2, 4), "float32")
            )
            flat = R.reshape(masked, (1, 3, 1))
            db = R.call_tir(k.bias_grad1, (flat, channels_0), out_ty=R.Tensor((2,), "float32"))
            out = (loss, dw, db)
            R.output(out)
        return out

    after = split(UpdatePlan.from_channels({0: (0, 2)}))
    assert_same(after, k.module(predict=predict, step=step))
    values, roles = get_values(after), get_roles(after)
    np.testing.assert_array_equal(values["w_rows"], perceptron.VALUES["w"][[0, 2]])
    np.testing.assert_array_equal(values["b_rows"], perceptron.VALUES["b"][[0, 2]])
    assert (roles["w_rows"], roles["b_rows"]) == ("param", "param")


def test_layers_trained_whole_or_by_input_channel_stay() -> None:
    for plan in (
        UpdatePlan.from_channels({0: (0, 1, 2)}),
        UpdatePlan((LayerUpdate(0, (0, 2), (1,)),)),
        UpdatePlan((LayerUpdate(0, (0, 2), weight=False),)),
    ):
        before = PruneBackward(plan)(perceptron.with_gradients())
        tvm.ir.assert_structural_equal(SplitWeights()(before), before)


def trained(net: type, plan: dict[int, tuple[int, ...]]) -> list[str]:
    mod = PruneBackward(UpdatePlan.from_channels(plan))(derived(seeded(net), sample(*net.shape)))
    return [d["param"] for d in json.loads(str(SplitWeights()(mod)["step"].attrs["tt.gradients"]))]


def test_grouped_convolutions_stay_depthwise_ones_are_split() -> None:
    assert trained(Mixed, {1: (0, 3), 3: (2,)}) == [
        "depthwise_weight_rows", "depthwise_bias_rows", "grouped_weight", "grouped_bias",
    ]  # fmt: skip


def test_a_weight_used_twice_is_split_at_both_places() -> None:
    mod = PruneBackward(UpdatePlan.from_channels({0: (0, 3)}))(derived(seeded(Twice), sample(*Twice.shape)))
    script = SplitWeights()(mod)["predict"].script()
    assert script.count("conv_weight_rows") == 1 + 2  # the parameter and its two readers
