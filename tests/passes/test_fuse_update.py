"""FuseUpdate: the update inside the gradient kernel, the split into accumulate and apply, the tensors it keeps."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import relax as R

from tests.passes import perceptron
from tests.passes.helpers import Kernels, assert_same, derived
from tests.passes.networks import Twice, sample, seeded
from tvm_tinytrain.config import SGD, Adam, AdamW, Optimizer
from tvm_tinytrain.passes.fuse_update import FuseUpdate
from tvm_tinytrain.passes.kernels.bias_grad import advance, apply_update
from tvm_tinytrain.passes.kernels.linear import linear_weight_grad
from tvm_tinytrain.passes.kernels.sinks import Accumulate, AdamUpdate, SGDUpdate
from tvm_tinytrain.passes.prune_backward import PruneBackward, full_update
from tvm_tinytrain.passes.state import get_layers, get_roles, get_values
from tvm_tinytrain.plan import UpdatePlan

ONE_CHANNEL = UpdatePlan.from_channels({1: (0,)})


def before(plan: UpdatePlan = ONE_CHANNEL) -> tvm.IRModule:
    return PruneBackward(plan)(perceptron.with_gradients())


def kernels(**last: tvm.tirx.PrimFunc) -> Kernels:
    loss_gradient = perceptron.BACKWARD["softmax_cross_entropy_grad"]
    return Kernels(**perceptron.FORWARD, softmax_cross_entropy_grad=loss_gradient, **last)


def test_sgd_with_momentum_in_the_gradient_kernel() -> None:
    sink = SGDUpdate(0.9, 0.01, True)
    k = kernels(linear_weight_grad=linear_weight_grad(perceptron.LAST, sink, channels=1))

    @R.function
    def step(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
        channels_1: R.Tensor((1,), "int32"),
        hyper: R.Tensor((4,), "float32"),
        u_v: R.Tensor((1, 3), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            dz = R.call_tir(k.softmax_cross_entropy_grad, (z, label), out_ty=R.Tensor((1, 2), "float32"))
            updated = R.call_tir_inplace(
                k.linear_weight_grad,
                (y, dz, channels_1, v, u_v, hyper),
                inplace_indices=[3, 4],
                out_ty=[R.Tensor((2, 3), "float32"), R.Tensor((1, 3), "float32")],
            )
            new = updated[0]
            out = (loss, new)
            R.output(out)
        return out

    after = FuseUpdate(SGD(0.1, 0.9, 0.01, True))(before())
    assert_same(after, k.module(predict=perceptron.predict_function(k), step=step))
    values, roles = get_values(after), get_roles(after)
    np.testing.assert_array_equal(values["hyper"], np.array([0.1, 0, 0, 0], np.float32))
    np.testing.assert_array_equal(values["u_v"], np.zeros((1, 3), np.float32))
    assert (roles["v"], roles["u_v"], roles["hyper"]) == ("param", "state", "state")
    assert "w" not in roles  # not trained: a constant


def test_adam_accumulated() -> None:
    sink = AdamUpdate(0.8, 0.99, 1e-6)
    k = kernels(
        linear_weight_grad=linear_weight_grad(perceptron.LAST, Accumulate(), channels=1),
        advance=advance(sink),
        apply_update=apply_update((2, 3), sink, channels=1),
    )

    @R.function
    def accumulate(
        x: R.Tensor((1, 4), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((3, 4), "float32"),
        b: R.Tensor((3,), "float32"),
        v: R.Tensor((2, 3), "float32"),
        channels_1: R.Tensor((1,), "int32"),
        hyper: R.Tensor((4,), "float32"),
        g_v: R.Tensor((1, 3), "float32"),
        m_v: R.Tensor((1, 3), "float32"),
        v_v: R.Tensor((1, 3), "float32"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            y = R.call_tir(k.linear, (x, w, b), out_ty=R.Tensor((1, 3), "float32"))
            z = R.call_tir(k.linear1, (y, v), out_ty=R.Tensor((1, 2), "float32"))
            loss = R.call_tir(k.softmax_cross_entropy, (z, label), out_ty=R.Tensor((1,), "float32"))
            dz = R.call_tir(k.softmax_cross_entropy_grad, (z, label), out_ty=R.Tensor((1, 2), "float32"))
            total = R.call_tir_inplace(
                k.linear_weight_grad,
                (y, dz, channels_1, g_v),
                inplace_indices=[3],
                out_ty=R.Tensor((1, 3), "float32"),
            )
            out = (loss, total)
            R.output(out)
        return out

    @R.function
    def apply(
        v: R.Tensor((2, 3), "float32"),
        channels_1: R.Tensor((1,), "int32"),
        g_v: R.Tensor((1, 3), "float32"),
        m_v: R.Tensor((1, 3), "float32"),
        v_v: R.Tensor((1, 3), "float32"),
        hyper: R.Tensor((4,), "float32"),
    ):
        R.func_attr({"num_input": 0})
        with R.dataflow():
            now = R.call_tir_inplace(
                k.advance, (hyper,), inplace_indices=[0], out_ty=R.Tensor((4,), "float32")
            )
            updated = R.call_tir_inplace(
                k.apply_update,
                (g_v, channels_1, v, m_v, v_v, now),
                inplace_indices=[0, 2, 3, 4],
                out_ty=[
                    R.Tensor((1, 3), "float32"),
                    R.Tensor((2, 3), "float32"),
                    R.Tensor((1, 3), "float32"),
                    R.Tensor((1, 3), "float32"),
                ],
            )
            new = updated[1]
            out = (new,)
            R.output(out)
        return out

    after = FuseUpdate(Adam(1e-3, (0.8, 0.99), 1e-6), accumulate=True)(before())
    functions = {"predict": perceptron.predict_function(k), "accumulate": accumulate, "apply": apply}
    assert_same(after, k.module(**functions))
    assert get_roles(after)["g_v"] == "grad"


@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [(SGD(), []), (SGD(momentum=0.5), ["u_v"]), (Adam(), ["m_v", "v_v"]), (AdamW(), ["m_v", "v_v"])],
)
@pytest.mark.parametrize("accumulate", [False, True])
def test_tensors_that_are_kept(optimizer: Optimizer, kept: list[str], accumulate: bool) -> None:
    after = FuseUpdate(optimizer, accumulate=accumulate)(before())
    new = set(get_values(after)) - set(perceptron.VALUES) - {"channels_1", "hyper"}
    assert new == {*kept, *(["g_v"] if accumulate else [])}
    assert {gv.name_hint for gv in after.functions if isinstance(after[gv], tvm.relax.Function)} == {
        "predict",
        *(("accumulate", "apply") if accumulate else ("step",)),
    }


def test_no_gradient_tensor_is_left() -> None:
    """Of a network trained whole, every gradient kernel updates in place: none returns a tensor of a weight's shape."""
    plan = UpdatePlan(tuple(full_update(layer) for layer in perceptron.LAYERS))
    script = FuseUpdate(SGD(0.1))(before(plan))["step"].script()
    made = [line for line in script.splitlines() if "R.call_tir(" in line and "_weight_grad" in line]
    assert made == []
    assert script.count("call_tir_inplace") == 3  # w, b, v


def test_gradients_of_a_weight_used_twice_are_summed_first() -> None:
    mod = derived(seeded(Twice), sample(*Twice.shape))
    plan = UpdatePlan(tuple(full_update(layer) for layer in get_layers(mod)))
    script = FuseUpdate(SGD(0.1))(PruneBackward(plan)(mod))["step"].script()
    assert script.count("apply_update") == 4  # weight and bias of the convolution, and of the linear layer
