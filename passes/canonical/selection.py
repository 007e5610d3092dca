"""``where``: conditions become comparisons inside the kernel that chooses."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.select import COMPARISONS, SelectSpec, select
from tvm_tinytrain.passes.rewriting import dtype_of, op_name, operands, shape_of


@rule("relax.where")
def where(ctx: Rewrite) -> relax.Expr | None:
    """Of comparisons of float32 tensors, joined by and, or, not."""
    if not ctx.is_float:
        return None
    if _guards_empty_softmax(ctx):
        return ctx.args[2]
    return _choose(ctx, ctx.args[0], ctx.args[1], ctx.args[2])


def _choose(ctx: Rewrite, condition: relax.Expr, a: relax.Expr, b: relax.Expr) -> relax.Expr | None:
    call = ctx.definition(condition)
    if call is None:
        return None
    name = op_name(call).removeprefix("relax.").replace("bitwise", "logical")
    if name == "logical_not":
        return _choose(ctx, call.args[0], b, a)
    if name in ("logical_and", "logical_or"):
        first, second = call.args
        inner = _choose(ctx, second, a, b)
        if inner is None:
            return None
        return _choose(ctx, first, inner, b) if name == "logical_and" else _choose(ctx, first, a, inner)
    if name not in COMPARISONS or any(dtype_of(v) != "float32" for v in call.args):
        return None
    sides = [*call.args, a, b]
    known = [ctx.scalar(v) for v in sides]
    if not any(shape_of(v) == ctx.out_shape for v, c in zip(sides, known, strict=True) if c is None):
        return None
    shapes = [shape_of(v) if c is None else c for v, c in zip(sides, known, strict=True)]
    spec = SelectSpec(ctx.out_shape, name, *shapes)
    return ctx.kernel(
        select(spec), [v for v, c in zip(sides, known, strict=True) if c is None], ctx.out_shape
    )


def _guards_empty_softmax(ctx: Rewrite) -> bool:
    """PyTorch's attention gives zeros for a row of scores that are all −∞. Without such a row in the mask, it is the softmax."""
    source, compared = ctx.args[0], False
    while (call := ctx.definition(source)) is not None:
        name = op_name(call)
        if name == "relax.equal":
            compared = ctx.scalar(call.args[1]) == -np.inf
            source = call.args[0]
            break
        if name not in ("relax.logical_not", "relax.astype", "relax.max"):
            return False
        source = call.args[0]
    if not compared or not _is_zero(ctx, ctx.args[1]):
        return False
    mask = ctx.definition(source)
    tables = [ctx.params[v.name] for v in operands(mask) if ctx.is_param(v)] if mask is not None else []
    return not any(np.isneginf(t).all(axis=-1).any() for t in tables if t.ndim)


def _is_zero(ctx: Rewrite, expr: relax.Expr) -> bool:
    value = ctx.known(expr)
    return value is not None and not value.any()
