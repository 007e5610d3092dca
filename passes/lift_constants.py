"""LiftConstants: what a kernel reads has a name and a place."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, dtype_of, rebuild
from tvm_tinytrain.passes.state import free_name, get_values, with_values


@tvm.transform.module_pass(opt_level=0, name="LiftConstants")
class LiftConstants:
    """``call_tir(where, (c, const(0.0), x))``  →  ``call_tir(where, (c, number_0, x))`` with a new parameter of that value.

    TVM writes a number into a loop where an operator adds or multiplies it, and hands it to all other kernels as a tensor.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites the Relax functions that hold such calls; equal constants share a parameter."""
        values, names = get_values(mod), dict[bytes, str]()
        taken = {p.name for f in mod.functions.values() if isinstance(f, relax.Function) for p in f.params}
        for gv, func in mod.functions.items():
            if isinstance(func, relax.Function):
                mod = _lift(mod, gv.name_hint, values, names, taken)
        return with_values(mod, values) if names else mod


def _lift(
    mod: tvm.IRModule, name: str, values: dict[str, np.ndarray], names: dict[bytes, str], taken: set[str]
) -> tvm.IRModule:
    func, lifted = mod[name], dict[str, relax.Var]()

    def lift(expr: relax.Expr) -> relax.Expr:
        if not isinstance(expr, tvm.ir.GenericConst):
            return expr
        array = expr.value.numpy()
        key = array.tobytes() + str((dtype_of(expr), array.shape)).encode()
        if key not in names:
            names[key] = free_name(f"number_{len(names)}", taken)
            taken.add(names[key])
            values[names[key]] = array
        return lifted.setdefault(names[key], relax.Var(names[key], expr.ty))

    calls = {}
    for b in bindings(func):
        if callee(b.value) is not None and any(
            isinstance(a, tvm.ir.GenericConst) for a in b.value.args[1].fields
        ):
            fields = relax.Tuple([lift(a) for a in b.value.args[1].fields])
            rest = list(b.value.args[2:])
            calls[b.var] = relax.Call(
                b.value.op, [b.value.args[0], fields, *rest], b.value.attrs, b.value.ty_args
            )
    if not calls:
        return mod

    def body(r: Rebuilder) -> relax.Expr:
        for b in bindings(func):
            if b.var in calls:
                r.env[b.var] = r.emit(r.look(calls[b.var]), b.var.name)
            else:
                r.keep(b)
        return r.look(func.body.body)

    return rebuild(mod, name, body, params=[*func.params, *lifted.values()], attrs=dict(func.attrs))
