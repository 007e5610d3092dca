"""LowerKernels: flat loops, one-dimensional buffers, 32-bit indices; nothing else of TIR is left for the C printer."""

from __future__ import annotations

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tests.passes.kernel_cases import kernels
from tvm_tinytrain.passes.kernels.builder import KERNEL_ATTR, SPEC_ATTR
from tvm_tinytrain.passes.lower_kernels import LowerKernels
from tvm_tinytrain.schedules import RULES, ScheduleKernels
from tvm_tinytrain.targets.target import parse_target

M7 = parse_target("c -mcpu=cortex-m7").to_tvm()


@I.ir_module
class Before:
    @T.prim_func(s_tir=True, private=True)
    def relu(a: T.Buffer((2, 3), "float32"), b: T.Buffer((2, 3), "float32")):
        for i, j in T.grid(2, 3):
            with T.sblock("relu"):
                vi, vj = T.axis.remap("SS", [i, j])
                b[vi, vj] = T.max(a[vi, vj], T.float32(0))

    @R.function
    def predict(x: R.Tensor((2, 3), "float32")):
        cls = Before
        with R.dataflow():
            y = R.call_tir(cls.relu, (x,), out_ty=R.Tensor((2, 3), "float32"))
            R.output(y)
        return y


def test_blocks_become_loops_over_flat_buffers() -> None:
    text = """
def relu(a: T.Buffer((2, 3), "float32"), b: T.Buffer((2, 3), "float32")):
    a_1 = a.view(6)
    b_1 = b.view(6)
    for i, j in T.grid(2, 3):
        cse_v1: T.let[T.int32] = i * 3 + j
        b_1[cse_v1] = T.max(a_1[cse_v1], T.float32(0.0))
"""
    after = LowerKernels(M7)(Before)
    script = after["relu"].script()
    assert script[script.index("def relu") - 1 :].rstrip() == text.rstrip()
    tvm.ir.assert_structural_equal(after["predict"], Before["predict"], map_free_vars=True)


@pytest.fixture(scope="module")
def lowered() -> tvm.IRModule:
    mod = tvm.IRModule({name: func.without_attr("global_symbol") for name, func in kernels().items()})
    return LowerKernels(M7)(ScheduleKernels(M7, RULES)(mod))


@pytest.mark.parametrize("name", kernels())
def test_nothing_is_left_that_c_does_not_have(lowered: tvm.IRModule, name: str) -> None:
    statements: set[str] = set()
    ranks: set[int] = set()
    dtypes: set[str] = set()

    def statement(s: tirx.Stmt) -> None:
        statements.add(type(s).__name__)
        if isinstance(s, tirx.BufferStore):
            ranks.add(len(s.indices))
            dtypes.update(str(i.ty.dtype) for i in s.indices)
        if isinstance(s, tirx.For):
            assert s.kind in (tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED), s.kind
            dtypes.add(str(s.loop_var.ty.dtype))

    tvm_ffi.structural_walk(lowered[name].body, [(tirx.Stmt, statement)])
    known = {
        "AllocBuffer",
        "AttrStmt",
        "Bind",
        "BufferStore",
        "DeclBuffer",
        "Evaluate",
        "For",
        "IfThenElse",
        "SeqStmt",
    }
    assert statements <= known
    assert ranks == {1}
    assert dtypes == {"int32"}


def test_kind_and_specification_stay(lowered: tvm.IRModule) -> None:
    for name, kernel in kernels().items():
        for key in (KERNEL_ATTR, SPEC_ATTR):
            assert lowered[name].attrs[key] == kernel.attrs[key]
