"""Canonicalize: what front ends write in many ways becomes one form that is differentiable and cheap."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.passes.canonical import Rewrite, rules_of
from tvm_tinytrain.passes.canonical.evaluation import evaluate
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, op_name, operands, rebuild, use_counts
from tvm_tinytrain.passes.state import free_name, get_fixed, get_values, with_fixed, with_values


@tvm.transform.module_pass(opt_level=0, name="Canonicalize")
class Canonicalize:
    """Rewrites function ``main`` operator by operator, by the table in `passes.canonical`; what becomes dead is dropped.

    ``multiply(x, divide(clip(clip(add(x, 3), 0, ∞), −∞, 6), 6))``  →  one kernel, hardswish. Elementwise functions, softmax and
    normalisations become kernels of ours; identities vanish; layers are left for `LowerLayers`. The first rule that does not
    answer None wins; an operator without a rule stays as it is.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``main``."""
        func = mod["main"]
        uses, values = use_counts(func), get_values(mod)
        params = {p.name: values[p.name] for p in func.params[int(func.attrs["num_input"]) :]}
        facts: dict[relax.Var, object] = {}

        def body(r: Rebuilder) -> relax.Expr:
            for b in bindings(func):
                reads = {r.look(a): uses[a] for a in operands(b.value) if isinstance(a, relax.Var)}
                rewrite = Rewrite(r, b, r.look(b.value), facts, reads, params)
                for rule in (evaluate, *rules_of(op_name(b.value))):
                    new = rule(rewrite)
                    if new is not None:
                        r.env[b.var] = new
                        break
                else:
                    r.keep(b)
            return r.look(r.func.body.body)

        mod = rebuild(mod, "main", body, attrs=dict(func.attrs))
        return _replace_tables(relax.transform.DeadCodeElimination(["main"])(mod), set(uses))


def _replace_tables(mod: tvm.IRModule, read_before: set[relax.Var]) -> tvm.IRModule:
    """Parameters that nothing reads any more go; constant tensors that rules left become parameters ``table_<n>``."""
    func, values = mod["main"], get_values(mod)
    tables: dict[bytes, relax.Var] = {}

    def lift(expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([lift(f) for f in expr.fields])
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [lift(a) for a in expr.args], expr.attrs, expr.ty_args)
        if not isinstance(expr, tvm.ir.GenericConst) or expr.value.ndim == 0:
            return expr
        array = expr.value.numpy()
        key = array.tobytes() + str((array.dtype, array.shape)).encode()
        if key not in tables:
            name = free_name(f"table_{len(tables)}", {*values, *(p.name for p in func.params)})
            values[name] = np.ascontiguousarray(array)
            tables[key] = relax.Var(name, expr.ty)
        return tables[key]

    lifted = {b.var: lift(b.value) for b in bindings(func)}
    uses, names = use_counts(func), {p.name for p in read_before}
    unread = [p for p in func.params[int(func.attrs["num_input"]) :] if p not in uses and p.name in names]
    if not tables and not unread:
        return mod

    def body(r: Rebuilder) -> relax.Expr:
        for b in bindings(func):
            r.env[b.var] = r.emit(r.look(lifted[b.var]), b.var.name)
        return r.look(func.body.body)

    params = [p for p in func.params if p not in unread] + list(tables.values())
    mod = rebuild(mod, "main", body, params=params, attrs=dict(func.attrs))
    if tables:
        mod = with_fixed(mod, get_fixed(mod) | {t.name for t in tables.values()})
    return with_values(mod, {n: v for n, v in values.items() if n not in {p.name for p in unread}})
