"""ScheduleKernels: who is asked, in which order, and what a schedule must leave alone."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tests.passes.kernel_cases import kernels
from tvm_tinytrain.schedules import RULES, ScheduleKernels
from tvm_tinytrain.targets.target import parse_target

M7 = parse_target("c -mcpu=cortex-m7").to_tvm()


@I.ir_module
class Before:
    @T.prim_func(s_tir=True, private=True)
    def twice(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")):
        T.func_attr({"own": 1})
        for i in range(8):
            with T.sblock("twice"):
                vi = T.axis.spatial(8, i)
                b[vi] = a[vi] + a[vi]

    @R.function
    def predict(x: R.Tensor((8,), "float32")):
        cls = Before
        with R.dataflow():
            y = R.call_tir(cls.twice, (x,), out_ty=R.Tensor((8,), "float32"))
            R.output(y)
        return y


@I.ir_module
class Split:
    """`Before` under a rule that splits the loop by four."""

    @T.prim_func(s_tir=True, private=True)
    def twice(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")):
        T.func_attr({"own": 1})
        for i, j in T.grid(2, 4):
            with T.sblock("twice"):
                vi = T.axis.spatial(8, i * 4 + j)
                b[vi] = a[vi] + a[vi]

    @R.function
    def predict(x: R.Tensor((8,), "float32")):
        cls = Split
        with R.dataflow():
            y = R.call_tir(cls.twice, (x,), out_ty=R.Tensor((8,), "float32"))
            R.output(y)
        return y


class Asked:
    """A rule that splits the only loop by `factor`, or says that the kernel is not its own; it counts its calls."""

    def __init__(self, factor: int | None) -> None:
        self.factor = factor
        self.calls = 0

    def __call__(self, func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
        self.calls += 1
        if self.factor is None:
            return None
        schedule = Schedule(func)
        (loop,) = schedule.get_loops(schedule.get_sblock("twice"))
        schedule.split(loop, [None, self.factor])
        return schedule


def test_first_answer_wins() -> None:
    not_mine, four, two = Asked(None), Asked(4), Asked(2)
    after = ScheduleKernels(M7, [not_mine, four, two])(Before)
    tvm.ir.assert_structural_equal(after, Split)
    assert (not_mine.calls, four.calls, two.calls) == (1, 1, 0)


def test_kernel_that_nobody_wants_stays() -> None:
    tvm.ir.assert_structural_equal(ScheduleKernels(M7, [Asked(None)])(Before), Before)


def test_fallback_computes_intermediates_where_they_are_used() -> None:
    @I.ir_module
    class Chain:
        @T.prim_func(s_tir=True, private=True)
        def fused(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")):
            c = T.sblock_alloc_buffer((8,), "float32")
            for i in range(8):
                with T.sblock("scale"):
                    vi = T.axis.spatial(8, i)
                    c[vi] = a[vi] * T.float32(2)
            for i in range(8):
                with T.sblock("shift"):
                    vi = T.axis.spatial(8, i)
                    b[vi] = c[vi] + T.float32(1)

    @I.ir_module
    class Expected:
        @T.prim_func(s_tir=True, private=True)
        def fused(a: T.Buffer((8,), "float32"), b: T.Buffer((8,), "float32")):
            for i in range(8):
                with T.sblock("shift"):
                    vi = T.axis.spatial(8, i)
                    b[vi] = a[vi] * T.float32(2) + T.float32(1)

    tvm.ir.assert_structural_equal(ScheduleKernels(M7, RULES)(Chain), Expected)


@pytest.mark.parametrize("target", ["c -mcpu=cortex-m7", "c -mcpu=cortex-m3", "c -mcpu=cortex-a53", "host"])
def test_every_kernel_keeps_its_signature_and_attributes(target: str) -> None:
    mod = tvm.IRModule({name: func.without_attr("global_symbol") for name, func in kernels().items()})
    after = ScheduleKernels(parse_target(target).to_tvm(), RULES)(mod)
    for name, kernel in kernels().items():
        new = after[name]
        assert [(p.name, list(p.shape)) for p in new.params] == [
            (p.name, list(p.shape)) for p in kernel.params
        ]
        assert dict(new.attrs.items()) == {k: v for k, v in kernel.attrs.items() if k != "global_symbol"}
