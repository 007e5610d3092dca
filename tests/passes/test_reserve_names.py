"""ReserveNames: which parameters get another name, and that their values follow."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.helpers import Kernels, assert_same, with_zeros
from tvm_tinytrain.passes.reserve_names import ReserveNames
from tvm_tinytrain.passes.state import get_values, with_values


@I.ir_module
class Before:
    @R.function
    def main(
        x: R.Tensor((4,), "float32"),
        step: R.Tensor((4,), "float32"),
        g_w: R.Tensor((4,), "float32"),
        w: R.Tensor((4,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.multiply(x, step)
            b = R.add(a, g_w)
            c = R.subtract(b, w)
            R.output(c)
        return c


def test_entries_and_gradients_keep_their_names() -> None:
    @R.function
    def main(
        x: R.Tensor((4,), "float32"),
        p_step: R.Tensor((4,), "float32"),
        p_g_w: R.Tensor((4,), "float32"),
        w: R.Tensor((4,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.multiply(x, p_step)
            b = R.add(a, p_g_w)
            c = R.subtract(b, w)
            R.output(c)
        return c

    values = {name: np.full(4, i, np.float32) for i, name in enumerate(("step", "g_w", "w"))}
    after = ReserveNames()(with_values(Before, values))
    assert_same(after, Kernels().module(main=main))
    assert [p.name for p in after["main"].params] == ["x", "p_step", "p_g_w", "w"]
    assert {name: v[0] for name, v in get_values(after).items()} == {"p_step": 0, "p_g_w": 1, "w": 2}


def renamed(*names: str, inputs: int = 1) -> list[str]:
    params = [tvm.relax.Var(name, tvm.relax.TensorType((2,), "float32")) for name in names]
    builder = tvm.relax.BlockBuilder()
    with builder.function("main", params, attrs={"num_input": inputs}):
        with builder.dataflow():
            total = params[0]
            for p in params[1:]:
                total = builder.emit(tvm.relax.op.add(total, p))
            out = builder.emit_output(total)
        builder.emit_func_output(out)
    return [p.name for p in ReserveNames()(with_zeros(builder.get()))["main"].params]


def test_ordinary_names_stay() -> None:
    ordinary = [
        "x",
        "conv_weight",
        "conv_bias",
        "mean",
        "scale",
        "g_weight",
        "step_size",
        "channels",
        "weight_v_",
    ]
    assert renamed(*ordinary) == ordinary


def test_names_of_the_library() -> None:
    assert renamed("x", "init", "loss", "hyper", "channels_12", "kernel_add") == [
        "x", "p_init", "p_loss", "p_hyper", "p_channels_12", "p_kernel_add",
    ]  # fmt: skip


def test_names_made_from_other_names() -> None:
    assert renamed("x", "w", "m_w", "v_w_rows", "w_rows", "u_q") == [
        "x",
        "w",
        "p_m_w",
        "p_v_w_rows",
        "p_w_rows",
        "u_q",
    ]


def test_a_new_name_is_not_taken_either() -> None:
    assert renamed("x", "p_step", "step") == ["x", "p_step", "p_p_step"]


def test_inputs_keep_their_names() -> None:
    assert renamed("output", "w") == ["output", "w"]
    assert renamed("x", "x") == ["x", "p_x"]
