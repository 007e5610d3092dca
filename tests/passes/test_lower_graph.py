"""The phase `lower_graph`: what is left are kernels and views; ours are untouched, TVM's are fused."""

from __future__ import annotations

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tests.passes.helpers import Kernels
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear
from tvm_tinytrain.passes.lower_graph import RemoveDeadCode, lower_graph
from tvm_tinytrain.passes.rewriting import bindings, callee, op_name


def lowered(mod: tvm.IRModule) -> tvm.IRModule:
    return tvm.ir.transform.Sequential(lower_graph())(mod)


def test_elementwise_operators_become_one_loop() -> None:
    @I.ir_module
    class Before:
        @R.function
        def predict(x: R.Tensor((1, 4), "float32"), y: R.Tensor((1, 4), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                a = R.add(x, y)
                b = R.nn.relu(a)
                c = R.multiply(b, R.const(0.5, "float32"))
                R.output(c)
            return c

    @I.ir_module
    class Expected:
        @T.prim_func(private=True, s_tir=True)
        def fused_add_relu_multiply(
            x: T.Buffer((T.int64(1), T.int64(4)), "float32"),
            y: T.Buffer((T.int64(1), T.int64(4)), "float32"),
            out: T.Buffer((T.int64(1), T.int64(4)), "float32"),
        ):
            T.func_attr({"tirx.noalias": True})
            total = T.sblock_alloc_buffer((T.int64(1), T.int64(4)))
            positive = T.sblock_alloc_buffer((T.int64(1), T.int64(4)))
            for i, j in T.grid(T.int64(1), T.int64(4)):
                with T.sblock("T_add"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    total[vi, vj] = x[vi, vj] + y[vi, vj]
            for i, j in T.grid(T.int64(1), T.int64(4)):
                with T.sblock("compute"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    positive[vi, vj] = T.max(total[vi, vj], T.float32(0.0))
            for i, j in T.grid(T.int64(1), T.int64(4)):
                with T.sblock("T_multiply"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    out[vi, vj] = positive[vi, vj] * T.float32(0.5)

        @R.function
        def predict(x: R.Tensor((1, 4), "float32"), y: R.Tensor((1, 4), "float32")):
            R.func_attr({"num_input": 1})
            cls = Expected
            with R.dataflow():
                c = R.call_tir(cls.fused_add_relu_multiply, (x, y), out_ty=R.Tensor((1, 4), "float32"))
                R.output(c)
            return c

    tvm.ir.assert_structural_equal(lowered(Before), Expected, map_free_vars=True)


def test_our_kernels_are_not_fused_and_views_stay_views() -> None:
    k = Kernels(linear=linear(LinearSpec(1, 4, 6)), clip_grad=clip_grad((2, 3), 0.0, None))

    @R.function
    def predict(x: R.Tensor((1, 4), "float32"), w: R.Tensor((6, 4), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            t = R.nn.relu(x)
            y = R.call_tir(k.linear, (t, w), out_ty=R.Tensor((1, 6), "float32"))
            v = R.reshape(y, (2, 3))
            z = R.call_tir(k.clip_grad, (v, v), out_ty=R.Tensor((2, 3), "float32"))
            R.output(z)
        return z

    before = k.module(predict=predict)
    after = lowered(before)
    assert forms(after) == ["relu", "linear", "relax.reshape", "clip_grad"]
    for name in ("linear", "clip_grad"):
        tvm.ir.assert_structural_equal(after[name], before[name])


def test_dead_code_goes_entry_points_stay() -> None:
    @I.ir_module
    class Before:
        @T.prim_func(private=True, s_tir=True)
        def orphan(a: T.Buffer((4,), "float32")):
            T.evaluate(0)

        @R.function(private=True)
        def helper(x: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 1})
            return x

        @R.function
        def predict(x: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                unread = R.add(x, x)  # noqa: F841
                y = R.nn.relu(x)
                R.output(y)
            return y

        @R.function
        def apply(x: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 0})
            with R.dataflow():
                y = R.negative(x)
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def predict(x: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.relu(x)
                R.output(y)
            return y

        @R.function
        def apply(x: R.Tensor((4,), "float32")):
            R.func_attr({"num_input": 0})
            with R.dataflow():
                y = R.negative(x)
                R.output(y)
            return y

    tvm.ir.assert_structural_equal(RemoveDeadCode()(Before), Expected)


def forms(mod: tvm.IRModule) -> list[str]:
    """Kernel or operator of each binding of `predict` that is no alias."""
    values = [b.value for b in bindings(mod["predict"]) if isinstance(b.value, tvm.relax.Call)]
    return [gv.name_hint if (gv := callee(v)) is not None else op_name(v) for v in values]
