"""``where``: conditions become comparisons inside the kernel that chooses."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvm_tinytrain.passes.canonical.evaluation import compute
from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.builder import kernel_kind
from tvm_tinytrain.passes.kernels.select import COMPARISONS, SelectSpec, select
from tvm_tinytrain.passes.kernels.softmax import SoftmaxSpec, softmax
from tvm_tinytrain.passes.rewriting import callee, dtype_of, op_name, operands, shape_of


@rule("relax.where")
def where(ctx: Rewrite) -> relax.Expr | None:
    """Of comparisons of float32 tensors, joined by and, or, not, and of conditions that are known at compile time."""
    if not ctx.is_float:
        return None
    scores = _guarded_scores(ctx)
    rows = None if scores is None else _empty_rows(ctx, scores)
    if scores is not None and rows is not None:
        return _softmax_without(ctx, scores, rows)
    return _choose(ctx, ctx.args[0], ctx.args[1], ctx.args[2])


@rule("relax.tril", "relax.triu")
def triangle(ctx: Rewrite) -> relax.Expr | None:
    """Zeros above or below a diagonal, by a table."""
    if not ctx.is_float:
        return None
    keep = np.tril if op_name(ctx.call) == "relax.tril" else np.triu
    table = keep(np.ones(ctx.out_shape[-2:], bool), int(ctx.call.args[1].value))
    return _choose_by_table(ctx, table, ctx.args[0], relax.const(0.0, "float32"))


def _choose(ctx: Rewrite, condition: relax.Expr, a: relax.Expr, b: relax.Expr) -> relax.Expr | None:
    table = ctx.known(condition)
    if table is not None:
        return _choose_by_table(ctx, table, a, b)
    call = ctx.definition(condition)
    if call is None:
        return None
    name = op_name(call).removeprefix("relax.").replace("bitwise", "logical")
    if name == "astype" and dtype_of(call.args[0]) == "float32":
        return _select(ctx, "not_equal", [call.args[0], relax.const(0.0, "float32"), a, b])
    if name == "logical_not":
        return _choose(ctx, call.args[0], b, a)
    if name == "isnan" and dtype_of(call.args[0]) == "float32":
        return _select(ctx, "not_equal", [call.args[0], call.args[0], a, b])
    if name == "isinf" and dtype_of(call.args[0]) == "float32":
        size = ctx.emit(relax.op.abs(call.args[0]))
        return _select(ctx, "equal", [size, relax.const(float("inf"), "float32"), a, b])
    if name in ("logical_and", "logical_or"):
        first, second = call.args
        inner = _choose(ctx, second, a, b)
        if inner is None:
            return None
        return _choose(ctx, first, inner, b) if name == "logical_and" else _choose(ctx, first, a, inner)
    if name not in COMPARISONS or any(dtype_of(v) != "float32" for v in call.args):
        return None
    return _select(ctx, name, [*call.args, a, b])


def _choose_by_table(ctx: Rewrite, table: np.ndarray, a: relax.Expr, b: relax.Expr) -> relax.Expr | None:
    """``a`` or ``b`` as a table of ones and zeros says."""
    for everywhere, side in ((table.all(), a), (not table.any(), b)):
        if everywhere and shape_of(side) == ctx.out_shape:
            return side
    if ctx.out_shape not in (shape_of(a), shape_of(b)):
        table = np.broadcast_to(table, ctx.out_shape)
    mask = relax.const(table.astype(np.float32), "float32")
    return _select(ctx, "greater", [mask, relax.const(0.5, "float32"), a, b])


def _select(ctx: Rewrite, comparison: str, sides: list[relax.Expr]) -> relax.Expr | None:
    """(left <comparison> right) ? a : b, where a side has the result's shape."""
    known = [ctx.scalar(v) for v in sides]
    if not any(shape_of(v) == ctx.out_shape for v, c in zip(sides, known, strict=True) if c is None):
        return None
    shapes = [shape_of(v) if c is None else c for v, c in zip(sides, known, strict=True)]
    spec = SelectSpec(ctx.out_shape, comparison, *shapes)
    return ctx.kernel(
        select(spec), [v for v, c in zip(sides, known, strict=True) if c is None], ctx.out_shape
    )


def _guarded_scores(ctx: Rewrite) -> relax.Expr | None:
    """The scores whose rows that are all −∞ get zeros instead of a softmax, as PyTorch's attention and its export to ONNX write it."""
    condition = ctx.definition(ctx.args[0])
    if condition is not None and op_name(condition) == "relax.isnan" and condition.args[0] == ctx.args[2]:
        return _softmax_operand(ctx, ctx.args[2]) if _is_zero(ctx, ctx.args[1]) else None
    source, compared = ctx.args[0], False
    while (call := ctx.definition(source)) is not None:
        name = op_name(call)
        if name == "relax.equal":
            compared = ctx.scalar(call.args[1]) == -np.inf
            source = call.args[0]
            break
        if name not in ("relax.logical_not", "relax.astype", "relax.max"):
            return None
        source = call.args[0]
    if not compared or shape_of(source) != ctx.out_shape or not _is_zero(ctx, ctx.args[1]):
        return None
    return source


def _softmax_operand(ctx: Rewrite, y: relax.Expr) -> relax.Expr | None:
    """What a softmax over the last axis is taken of."""
    call = ctx.definition(y)
    if call is not None and op_name(call) == "relax.reshape":
        call = ctx.definition(call.args[0])
    if call is None or _kind(ctx, call) != "softmax":
        return None
    x = operands(call)[0]
    if (view := ctx.definition(x)) is not None and op_name(view) == "relax.reshape":
        x = view.args[0]
    last = shape_of(operands(call)[0]) == (math.prod(ctx.out_shape[:-1]), ctx.out_shape[-1], 1)
    return x if last and shape_of(x) == ctx.out_shape else None


def _empty_rows(ctx: Rewrite, scores: relax.Expr) -> np.ndarray | None:
    """Which rows of a sum of products and masks are all −∞, with the last axis kept; None where a mask is not known."""
    terms, hidden, seen = [scores], np.zeros(1, bool), set[relax.Expr]()
    while terms:
        term = terms.pop()
        if term in seen:
            continue
        seen.add(term)
        value, call = initial_value(ctx, term), ctx.definition(term)
        name = "" if call is None else op_name(call).removeprefix("relax.")
        if value is not None:
            hidden = np.logical_or(hidden, np.isneginf(value))
        elif call is None:
            return None
        elif name == "add":
            terms.extend(call.args)
        elif name in ("reshape", "expand_dims", "squeeze", "broadcast_to"):
            terms.append(call.args[0])
        elif name not in ("matmul", "multiply", "divide") and _kind(ctx, call) != "matmul":
            return None
    return np.asarray(hidden.all(axis=-1, keepdims=True))


def _softmax_without(ctx: Rewrite, scores: relax.Expr, rows: np.ndarray) -> relax.Expr | None:
    """The softmax over the last axis with zeros in these ``rows``, whose scores have no part in it."""
    if not rows.any():
        return ctx.args[2]
    zero, size = relax.const(0.0, "float32"), ctx.out_shape[-1]
    finite = _choose_by_table(ctx, rows, zero, scores)
    if finite is None:
        return None
    spec = SoftmaxSpec(math.prod(ctx.out_shape) // size, size, 1, False)
    y = ctx.view(ctx.kernel(softmax(spec), [ctx.view(finite, spec.shape)], spec.shape), ctx.out_shape)
    return _choose_by_table(ctx, rows, zero, y)


def _kind(ctx: Rewrite, call: relax.Expr | None) -> str | None:
    """What kernel an expression calls."""
    gv = None if call is None else callee(call)
    return None if gv is None else kernel_kind(ctx.r.bb.get()[gv])


def initial_value(ctx: Rewrite, expr: relax.Expr) -> np.ndarray | None:
    """The value of an expression of constants and parameters before anything is trained, or None."""
    if ctx.is_param(expr):
        return ctx.params[expr.name]
    call = ctx.definition(expr)
    if isinstance(call, relax.Var):
        return initial_value(ctx, call)
    if isinstance(call, relax.Call) and isinstance(expr.ty, relax.TensorType):
        return compute(call, expr, lambda operand: initial_value(ctx, operand))
    return ctx.known(expr)


def _is_zero(ctx: Rewrite, expr: relax.Expr) -> bool:
    value = initial_value(ctx, expr)
    return value is not None and not value.any()
