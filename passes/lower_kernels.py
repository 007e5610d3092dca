"""LowerKernels: scheduled TIR → flat loops over one-dimensional buffers, 32-bit indices, no blocks."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from tvm_tinytrain.passes.bound_loops import BoundLoops, DropSingleLoops
from tvm_tinytrain.passes.split_loops import SplitLoops
from tvm_tinytrain.passes.unroll_conditions import UnrollConditions

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
        BoundLoops(),
        SplitLoops(),
        TX.ConvertSSA(),
        ST.StmtSimplify(),
        DropSingleLoops(),
        UnrollConditions(),
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


def lower_kernel(func: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    """One kernel, lowered."""
    lowering: tvm.ir.transform.Pass = LowerKernels(target)
    return lowering(tvm.IRModule({"main": func.without_attr("global_symbol")}))["main"]
