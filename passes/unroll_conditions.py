"""UnrollConditions: a loop over a vector's elements that treats some of them otherwise is unrolled instead."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tvm_tinytrain.passes.bound_loops import variables


@tvm.tirx.transform.prim_func_pass(opt_level=0, name="UnrollConditions")
class UnrollConditions:
    """``for i in vectorized(4): if i >= 1: …``  →  ``for i in unroll(4): if i >= 1: …``

    TVM would make a serial loop of it, in which the variables on the stack are an array.
    """

    def transform_function(
        self, func: tirx.PrimFunc, mod: tvm.IRModule, ctx: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrites all vectorised loops."""
        return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.For, _unroll)]))


def _unroll(loop: tirx.For) -> tirx.For:
    if loop.kind != tirx.ForKind.VECTORIZED or not _decides(loop):
        return loop
    return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.UNROLLED, loop.body)


def _decides(loop: tirx.For) -> bool:
    """Whether a condition in the loop depends on its variable."""
    found: list[Any] = []

    def on_call(call: Any) -> None:
        if str(getattr(call.op, "name", "")).endswith("if_then_else"):
            found.append(call.args[0])

    tvm_ffi.structural_walk(
        loop.body,
        [
            (tirx.IfThenElse, lambda s: found.append(s.condition)),
            (tirx.Select, lambda e: found.append(e.condition)),
            (tvm.ir.Call, on_call),
        ],
    )
    return any(loop.loop_var in variables(condition) for condition in found)
