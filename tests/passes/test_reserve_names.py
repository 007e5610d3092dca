"""ReserveNames: which inputs and parameters get another name, and that what names them follows."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R

from tests.passes.helpers import Kernels, assert_same, with_zeros
from tvm_tinytrain.errors import KernelError
from tvm_tinytrain.passes.reserve_names import ReserveNames
from tvm_tinytrain.passes.state import (
    get_adapters,
    get_fixed,
    get_renamed,
    get_values,
    new_tensor,
    with_adapters,
    with_fixed,
    with_values,
)


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
    before = with_adapters(with_fixed(with_values(Before, values), ["step"]), ("g_w", "w"))
    after = ReserveNames()(before)
    assert_same(after, Kernels().module(main=main))
    assert [p.name for p in after["main"].params] == ["x", "p_step", "p_g_w", "w"]
    assert {name: v[0] for name, v in get_values(after).items()} == {"p_step": 0, "p_g_w": 1, "w": 2}
    assert get_fixed(after) == {"p_step"}
    assert get_adapters(after) == ("p_g_w", "w")
    assert get_renamed(after) == (("step", "p_step"), ("g_w", "p_g_w"))


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
        "channels_mix",
        "delta_net",
        "delta_0_weight",
        "bn_rstd",
        "table_0",
    ]
    assert renamed(*ordinary) == ordinary


def test_names_of_the_library() -> None:
    own = [
        "init", "loss", "hyper", "channels_12", "delta_0", "plan", "slot", "squared_norms", "kernel_add", "save_to", "step_cached",
    ]  # fmt: skip
    assert renamed("x", *own) == ["x", *(f"p_{name}" for name in own)]


def test_names_made_from_other_names() -> None:
    assert renamed("x", "w", "m_w", "v_w_rows", "w_rows", "u_q", "mv_w", "scales_w_rows") == [
        "x",
        "w",
        "p_m_w",
        "p_v_w_rows",
        "p_w_rows",
        "u_q",
        "p_mv_w",
        "p_scales_w_rows",
    ]


def test_a_new_name_is_not_taken_either() -> None:
    assert renamed("x", "p_step", "step") == ["x", "p_step", "p_p_step"]
    assert renamed("x", "step", "g_p_step") == ["x", "p_step", "p_g_p_step"]


def test_inputs_keep_their_names() -> None:
    assert renamed("step", "w", "init") == ["step", "w", "p_init"]
    assert renamed("x", "x") == ["x", "p_x"]


@pytest.mark.parametrize("name", ["hyper", "label", "output", "plan", "delta_1", "g_w", "w_rows"])
def test_inputs_leave_the_library_its_tensors(name: str) -> None:
    assert renamed(name, "w") == [f"p_{name}", "w"]


def test_inputs_differ_in_capital_letters() -> None:
    assert renamed("x", "X", "Arena", "Hyper", "w", "W", inputs=4) == [
        "x",
        "p_X",
        "p_Arena",
        "p_Hyper",
        "w",
        "W",
    ]


def test_a_name_is_given_once() -> None:
    values, roles = {"w": np.zeros(2, np.float32)}, {"x": "input"}
    for name in ("w", "x"):
        with pytest.raises(KernelError, match=f"tensor {name}: found another tensor of that name"):
            new_tensor(values, roles, name, np.zeros(2, np.float32), "state")
    assert new_tensor(values, roles, "g_w", np.zeros(2, np.float32), "grad").name == "g_w"
    assert (set(values), roles) == ({"w", "g_w"}, {"x": "input", "g_w": "grad"})
