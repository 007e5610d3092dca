"""Reverse-mode differentiation of a Relax function: what DeriveBackward and DeriveFisher share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.gradients import GradientContext, gradient_of
from tvm_tinytrain.passes.kernels.builder import kernel_kind
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, dtype_of, op_name, operands

Watch = Mapping[relax.Var, Callable[[relax.Expr, relax.Expr], None]]
"""For bindings of the forward pass: what to do with (value, adjoint) as soon as the adjoint is complete."""


NO_GRADIENT = "relax.grad.no_grad"
"""The identity through which no gradient flows: PyTorch's ``detach``."""


def differentiable_variables(func: relax.Function) -> set[relax.Var]:
    """Variables from which a path leads to the result of ``func`` that no ``detach`` and no step interrupts."""
    found = {func.body.body}
    for b in reversed(bindings(func)):
        if b.var in found and not _stops(b):
            found.update(o for o in operands(b.value) if isinstance(o, relax.Var))
    return found


def _stops(b: relax.VarBinding) -> bool:
    """Whether no gradient goes through: behind a ``detach``, and from truth values and integers, which step."""
    discrete = isinstance(b.var.ty, relax.TensorType) and not dtype_of(b.var).startswith("float")
    return discrete or op_name(b.value) == NO_GRADIENT


def active_variables(func: relax.Function, targets: list[relax.Var]) -> set[relax.Var]:
    """Variables on a path from a target to the loss, which a ``detach`` interrupts."""
    reached = set(targets)
    for b in bindings(func):
        if _stops(b):
            continue
        if any(o in reached for o in operands(b.value) if isinstance(o, relax.Var)):
            reached.add(b.var)
    return reached & differentiable_variables(func)


def reverse(
    r: Rebuilder,
    mod: tvm.IRModule,
    func: relax.Function,
    active: set[relax.Var],
    watch: Watch | None = None,
) -> dict[relax.Var, relax.Expr]:
    """Emits the backward pass of ``func`` (whose forward bindings ``r`` has already emitted); adjoints by parameter.

    ``active`` comes from `active_variables`; only its members get adjoints.
    """
    adjoints: dict[relax.Var, list[relax.Expr]] = {}
    fields: dict[relax.Var, dict[int, list[relax.Expr]]] = {}

    def total(terms: list[relax.Expr]) -> relax.Expr:
        value = terms[0]
        for term in terms[1:]:
            value = r.emit(relax.op.add(value, term))
        return value

    loss = func.body.body
    for b in reversed(bindings(func)):
        if b.var not in active:
            continue
        is_loss = b.var == loss
        if is_loss and isinstance(b.value, relax.Var):  # the function's result is another name of the loss
            loss = b.value
            continue
        if not is_loss and b.var not in adjoints and b.var not in fields:
            continue
        if isinstance(b.value, relax.Var):
            adjoints.setdefault(b.value, []).extend(adjoints.pop(b.var, []))
            continue
        if isinstance(b.value, relax.TupleGetItem):
            slot = fields.setdefault(b.value.tuple_value, {}).setdefault(b.value.index, [])
            slot.append(total(adjoints.pop(b.var)))
            continue
        dy: Any = None
        if b.var in fields:
            parts = fields.pop(b.var)
            dy = [total(parts[i]) if i in parts else None for i in range(len(b.var.ty.fields))]
        elif not is_loss:
            dy = total(adjoints.pop(b.var))
        if watch is not None and b.var in watch:
            watch[b.var](r.look(b.var), dy)
        args = operands(b.value)
        needs = [isinstance(a, relax.Var) and a in active for a in args]
        if not any(needs):
            continue
        for arg, grad in zip(args, _apply_rule(r, mod, b, dy, needs), strict=True):
            if grad is not None:
                adjoints.setdefault(arg, []).append(grad)
    return {p: total(adjoints[p]) for p in func.params if p in adjoints}


def _apply_rule(
    r: Rebuilder, mod: tvm.IRModule, b: relax.VarBinding, dy: Any, needs: list[bool]
) -> list[relax.Expr | None]:
    gv = callee(b.value)
    kernel = mod[gv] if gv is not None else None
    kind = None if kernel is None else kernel_kind(kernel)
    name = op_name(b.value) if gv is None else f"kernel.{kind or gv.name_hint}"
    rule = gradient_of(name) if gv is None or kind is not None else None
    if rule is None:
        raise UnsupportedOperatorError(
            "derive backward", f"{name} at {b.var.name}", "no gradient", "operators of the gradient table",
            "select layers behind it only, replace the operator, or add a rule in passes/gradients",
        )  # fmt: skip
    args = [r.look(a) for a in operands(b.value)]
    return rule(GradientContext(r, b.value, args, r.look(b.var), dy, needs, kernel))
