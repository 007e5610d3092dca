"""DropGradientStops: once the backward pass stands, ``detach`` is the identity."""

from __future__ import annotations

import tvm
from tvm import relax

from tvm_tinytrain.passes.reverse_mode import NO_GRADIENT
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, op_name, rebuild


@tvm.transform.module_pass(opt_level=0, name="DropGradientStops")
class DropGradientStops:
    """``y = no_grad(x)``  →  ``x`` wherever ``y`` is read, in every function: nothing is copied for it."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites the functions that have such a binding."""
        for name in [gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function)]:
            func = mod[name]
            stops = {b.var: b.value.args[0] for b in bindings(func) if op_name(b.value) == NO_GRADIENT}
            if not stops:
                continue

            def body(r: Rebuilder, stops: dict[relax.Var, relax.Expr] = stops) -> relax.Expr:
                for b in bindings(r.func):
                    if b.var in stops:
                        r.env[b.var] = r.look(stops[b.var])
                    else:
                        r.keep(b)
                return r.look(r.func.body.body)

            mod = rebuild(mod, name, body, attrs=dict(func.attrs))
        return mod
