"""The analysis of a lowered module: which storage each argument of each call is, and what an entry hands back."""

from __future__ import annotations

import re

import pytest
import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvm_tinytrain.errors import KernelError, UnsupportedOperatorError
from tvm_tinytrain.passes.program import Entry, KernelCall, Storage, analyse_program
from tvm_tinytrain.passes.state import with_roles


@I.ir_module
class Lowered:
    @T.prim_func(s_tir=True, private=True)
    def copy(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
        T.evaluate(0)

    @T.prim_func(s_tir=True, private=True)
    def split(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32"), c: T.Buffer((1,), "float32")):
        T.evaluate(0)

    @T.prim_func(s_tir=True, private=True)
    def update(g: T.Buffer((4,), "float32"), w: T.Buffer((4,), "float32"), u: T.Buffer((4,), "float32")):
        T.evaluate(0)

    @R.function
    def predict(
        x: R.Tensor((4,), "float32"), w: R.Tensor((4,), "float32"), unused: R.Tensor((4,), "float32")
    ):
        R.func_attr({"num_input": 1})
        cls = Lowered
        with R.dataflow():
            y = R.call_tir(cls.copy, (x,), out_ty=R.Tensor((4,), "float32"))
            view = R.reshape(y, (2, 2))
            back = R.reshape(view, (4,))
            z = R.call_tir(cls.copy, (back,), out_ty=R.Tensor((4,), "float32"))
            o = R.reshape(z, (1, 4))
            R.output(o)
        return o

    @R.function
    def step(
        x: R.Tensor((4,), "float32"),
        label: R.Tensor((1,), "int32"),
        w: R.Tensor((4,), "float32"),
        u: R.Tensor((4,), "float32"),
        unused: R.Tensor((4,), "float32"),
    ):
        R.func_attr({"num_input": 2})
        cls = Lowered
        with R.dataflow():
            pair = R.call_tir(cls.split, (x,), out_ty=[R.Tensor((4,), "float32"), R.Tensor((1,), "float32")])
            g = pair[0]
            loss = pair[1]
            new = R.call_tir_inplace(
                cls.update,
                (g, w, u),
                inplace_indices=[1, 2],
                out_ty=[R.Tensor((4,), "float32"), R.Tensor((4,), "float32")],
            )
            weight = new[0]
            out = (loss, weight)
            R.output(out)
        return out


ROLES = {"x": "input", "label": "label", "w": "param", "u": "state"}


def test_views_and_in_place_results_are_the_same_storage() -> None:
    program = analyse_program(with_roles(Lowered, ROLES))
    assert program.entries == (
        Entry(
            "predict",
            (
                KernelCall("copy", ("x", "predict.y"), "y [4]", ("predict.y",)),
                KernelCall("copy", ("predict.y", "predict.z"), "z [4]", ("predict.z",)),
            ),
            ("x",),
            "predict.z",
        ),
        Entry(
            "step",
            (
                KernelCall(
                    "split",
                    ("x", "step.pair_0", "step.pair_1"),
                    "pair [4] [1]",
                    ("step.pair_0", "step.pair_1"),
                ),
                KernelCall("update", ("step.pair_0", "w", "u"), "new [4] [4]", (), ("w", "u")),
            ),
            ("x", "label"),
            "step.pair_1",
        ),
    )


def test_storages_and_their_bytes() -> None:
    program = analyse_program(with_roles(Lowered, ROLES))
    assert {s.name: (s.role, s.bytes) for s in program.storages} == {
        "x": ("input", 16),
        "w": ("param", 16),
        "predict.y": ("activation", 16),
        "predict.z": ("activation", 16),
        "label": ("label", 4),
        "u": ("state", 16),
        "step.pair_0": ("activation", 16),
        "step.pair_1": ("activation", 4),
    }  # the parameter that nobody reads needs no memory
    assert program.storage("u") == Storage("u", (4,), "float32", "state")


def test_parameter_that_is_read_after_its_update_is_an_error() -> None:
    @I.ir_module
    class Stale:
        @T.prim_func(s_tir=True, private=True)
        def copy(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
            T.evaluate(0)

        @T.prim_func(s_tir=True, private=True)
        def update(g: T.Buffer((4,), "float32"), w: T.Buffer((4,), "float32")):
            T.evaluate(0)

        @R.function
        def step(x: R.Tensor((4,), "float32"), w: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 1})
            cls = Stale
            with R.dataflow():
                new = R.call_tir_inplace(
                    cls.update, (x, w), inplace_indices=[1], out_ty=R.Tensor((4,), "float32")
                )
                late = R.call_tir(cls.copy, (w,), out_ty=R.Tensor((4,), "float32"))
                out = (late, new)
                R.output(out)
            return out

    message = re.escape("step, w: found late [4] reads it after its update; allowed reads before the update")
    with pytest.raises(KernelError, match=message):
        analyse_program(with_roles(Stale, {"x": "input", "w": "param"}))
    analyse_program(with_roles(Stale, {"x": "input", "w": "state"}))


def test_operator_that_was_not_lowered_is_an_error() -> None:
    @I.ir_module
    class Left:
        @R.function
        def predict(x: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.relu(x)
                R.output(y)
            return y

    with pytest.raises(
        UnsupportedOperatorError, match=r"plan memory: relax.nn.relu at y: found an operator that was not"
    ):
        analyse_program(with_roles(Left, {"x": "input"}))


def test_order_of_entries_is_fixed() -> None:
    reverse = tvm.IRModule({gv: Lowered[gv] for gv in reversed(list(Lowered.functions))})
    assert [e.name for e in analyse_program(with_roles(reverse, ROLES)).entries] == ["predict", "step"]
