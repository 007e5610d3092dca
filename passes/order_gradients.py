"""OrderGradients: a parameter's gradient is taken as soon as its operands are there, so that saved inputs die early."""

from __future__ import annotations

from functools import partial

import tvm
from tvm import relax

from tvm_tinytrain.passes.kernels.builder import kernel_kind
from tvm_tinytrain.passes.liveness import Liveness, inplace_indices, is_view, live_bytes, liveness
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, op_name, operands, rebuild

_MOVED = ("conv2d_weight_grad", "linear_weight_grad", "bias_grad")


@tvm.transform.module_pass(opt_level=0, name="OrderGradients")
class OrderGradients:
    """``dx = input_grad(dy, w); dw = weight_grad(x, dy)``  →  ``dw = …; dx = …``: x need not live beside dx.

    A gradient moves up past everything that neither makes what it reads nor reads what it changes: an update fused behind dw changes
    w, which dx reads, and stays behind it. None moves in front of the loss, even where its operands are there before (with a loss
    whose gradient is handed in): a forward pass that changes no gradient can be cut anywhere (`frozen_prefix`). A function whose
    peak that does not lower keeps its order.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Reorders every Relax function."""
        for name in sorted(gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function)):
            func = mod[name]
            order = reordered(mod, func)
            if order == bindings(func):
                continue
            changed = rebuild(mod, name, partial(_emit, order, func), attrs=dict(func.attrs))
            if max(live_bytes(changed[name]), default=0) < max(live_bytes(func), default=0):
                mod = changed
        return mod


def _emit(order: list[relax.VarBinding], func: relax.Function, r: Rebuilder) -> relax.Expr:
    for b in order:
        r.keep(b)
    return r.look(func.body.body)


def reordered(mod: tvm.IRModule, func: relax.Function) -> list[relax.VarBinding]:
    """The function's bindings with the gradients of parameters moved up, none of them in front of the loss."""
    spans = liveness(func)
    loss = _first_result(func)
    out: list[relax.VarBinding] = []
    for b in bindings(func):
        gv = callee(b.value)
        place = len(out)
        if gv is not None and kernel_kind(mod[gv]) in _MOVED:
            while place > 0 and out[place - 1].var != loss and _may_swap(out[place - 1], b, spans):
                place -= 1
        elif is_view(b.value):  # a view costs nothing and must not hold up the gradient that reads it
            while place > 0 and out[place - 1].var not in operands(b.value):
                place -= 1
        out.insert(place, b)
    return out


def _first_result(func: relax.Function) -> relax.Expr:
    """What a function returns, the first field of a tuple: the loss of one that has gradients."""
    values = {b.var: b.value for b in bindings(func)}
    result = values.get(func.body.body, func.body.body)
    return result.fields[0] if isinstance(result, relax.Tuple) else result


def _may_swap(before: relax.VarBinding, after: relax.VarBinding, spans: Liveness) -> bool:
    """Whether ``after`` may run in front of ``before``."""
    reads = {spans.owner(v) for v in operands(after.value) if isinstance(v, relax.Var)}
    made = {before.var, spans.owner(before.var)} | _changed(before, spans)
    if reads & made or before.var in operands(after.value):
        return False
    seen = {spans.owner(v) for v in operands(before.value) if isinstance(v, relax.Var)}
    return not (seen & _changed(after, spans))


def _changed(b: relax.VarBinding, spans: Liveness) -> set[relax.Var]:
    """Owners of the bytes that a binding overwrites."""
    if op_name(b.value) != "relax.call_tir_inplace":
        return set()
    args = list(b.value.args[1].fields)
    return {spans.owner(args[i]) for i in inplace_indices(b.value) if i >= 0}
