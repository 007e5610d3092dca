"""LowerKernels: scheduled TIR → flat loops over one-dimensional buffers, 32-bit indices, no blocks."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

TX, ST = tirx.transform, s_tir.transform


def lowering_passes(target: tvm.target.Target) -> list[tvm.ir.transform.Pass]:
    """TVM's own lowering (``tvm.s_tir.pipeline``) without the steps that wrap functions for its runtime."""
    return [
        TX.BindTarget(tvm.target.Target(target, host=target)),
        ST.CanonicalizeLoop(),
        ST.LowerInitBlock(),
        ST.PlanAndUpdateBufferAllocationLocation(),
        ST.ConvertBlocksToOpaque(),
        ST.CompactBufferAllocation(),
        ST.LowerMatchBuffer(),
        ST.StmtSimplify(),
        ST.LowerOpaqueBlock(),
        TX.FlattenBuffer(),
        TX.NarrowDataType(32),
        SplitRemainders(),
        TX.VectorizeLoop(True),
        TX.StorageRewrite(),
        ST.HoistIfThenElse(),
        TX.UnrollLoop(),
        ST.RenormalizeSplitPattern(),
        TX.StmtSimplify(),
        TX.RemoveNoOp(),
        ST.RewriteUnsafeSelect(),
        TX.CommonSubexprElim(),
        TX.LowerIntrin(),
    ]


@tvm.transform.module_pass(opt_level=0, name="LowerKernels")
class LowerKernels:
    """Lowers every PrimFunc of the module for ``target``; Relax functions stay as they are."""

    def __init__(self, target: tvm.target.Target) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites all kernels."""
        kernels = {gv: f for gv, f in mod.functions.items() if isinstance(f, tirx.PrimFunc)}
        named = {gv.name_hint: gv for gv in kernels}
        lowered = tvm.IRModule({gv: f.with_attr("global_symbol", gv.name_hint) for gv, f in kernels.items()})
        lowered = tvm.ir.transform.Sequential(lowering_passes(self.target))(lowered)
        out = dict(mod.functions.items())
        for gv, func in lowered.functions.items():
            out[named[gv.name_hint]] = func.without_attr("target")
        return tvm.IRModule(out, attrs=mod.attrs)


@tvm.transform.module_pass(opt_level=0, name="SplitRemainders")
class SplitRemainders:
    """A loop over tiles whose last tile is smaller becomes a loop over whole tiles and a smaller tile behind it.

    ``for o in 3: for i in 6: if o * 6 + i < 16: …``  →  ``for o in 2: for i in 6: …``, then ``for i in 4: …`` for o = 2.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Marks all conditions of statements as likely, which is what TVM's LoopPartition looks for, and runs it."""
        out = {}
        for gv, func in mod.functions.items():
            body = tvm_ffi.structural_map(func.body, [(tirx.IfThenElse, _mark)])
            out[gv] = func.with_body(body)
        config = {"s_tir.LoopPartition": {"partition_const_loop": True}}
        with tvm.transform.PassContext(config=config):
            return ST.StmtSimplify()(ST.LoopPartition()(tvm.IRModule(out, attrs=mod.attrs)))


def _mark(stmt: tirx.IfThenElse) -> tirx.IfThenElse:
    return tirx.IfThenElse(_likely(stmt.condition), stmt.then_case, stmt.else_case)


def _likely(condition: Any) -> Any:
    if isinstance(condition, tirx.And):
        return tirx.And(_likely(condition.a), _likely(condition.b))
    return condition if isinstance(condition, tirx.IntImm) else tirx.likely(condition)
