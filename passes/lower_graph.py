"""The phase that leaves only kernels: what is not a layer is legalised by TVM and fused into single loops."""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_tinytrain.passes.lift_constants import LiftConstants

ENTRY_POINTS = ("predict", "step", "accumulate", "apply", "backward", "fisher")


@tvm.transform.module_pass(opt_level=0, name="RemoveDeadCode")
class RemoveDeadCode:
    """Drops bindings, functions and kernels that no entry point reaches."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Keeps the entry points that the module has."""
        names = {gv.name_hint for gv in mod.functions}
        return relax.transform.DeadCodeElimination([n for n in ENTRY_POINTS if n in names])(mod)


def lower_graph() -> list[tvm.ir.transform.Pass]:
    """Relax operators → fused PrimFuncs; reshapes that move nothing stay as views."""
    return [
        relax.transform.LegalizeOps(),
        LiftConstants(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        RemoveDeadCode(),
    ]
