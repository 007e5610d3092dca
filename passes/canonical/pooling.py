"""Pooling: one spelling for global, adaptive and one-dimensional pools."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.rewriting import op_name


@rule("relax.nn.adaptive_avg_pool2d")
def adaptive_pool(ctx: Rewrite) -> relax.Expr | None:
    """A mean where it pools everything, an average pool where the output divides the input."""
    (height, width), (rows, columns) = ctx.shape()[2:], ctx.out_shape[2:]
    if (rows, columns) == (1, 1):
        return ctx.emit(relax.op.mean(ctx.args[0], [2, 3], keepdims=True))
    if height % rows or width % columns:
        return None
    window = (height // rows, width // columns)
    return ctx.emit(relax.op.nn.avg_pool2d(ctx.args[0], window, window))


@rule("relax.nn.adaptive_avg_pool1d")
def adaptive_pool_1d(ctx: Rewrite) -> relax.Expr | None:
    """As two-dimensional pooling of rows."""
    _, channels, length = ctx.shape()
    rows = ctx.view(ctx.args[0], (1, channels, 1, length))
    return ctx.view(_rule_2d(ctx, rows), ctx.out_shape)


def _rule_2d(ctx: Rewrite, rows: relax.Expr) -> relax.Expr:
    length, count = ctx.shape()[2], ctx.out_shape[2]
    if count == 1:
        return ctx.emit(relax.op.mean(rows, [2, 3], keepdims=True))
    if length % count == 0:
        window = (1, length // count)
        return ctx.emit(relax.op.nn.avg_pool2d(rows, window, window))
    return ctx.emit(relax.op.nn.adaptive_avg_pool2d(rows, (1, count)))


@rule("relax.nn.max_pool1d", "relax.nn.avg_pool1d")
def pool_1d(ctx: Rewrite) -> relax.Expr | None:
    """As two-dimensional pooling of rows."""
    a = ctx.attrs
    if str(a.layout) != "NCW":
        return None
    _, channels, length = ctx.shape()
    rows = ctx.view(ctx.args[0], (1, channels, 1, length))
    size, stride, dilation = ((1, int(v[0])) for v in (a.pool_size, a.strides, a.dilation))
    padding = (0, int(a.padding[0]), 0, int(a.padding[1]))
    pool = relax.op.nn.max_pool2d if op_name(ctx.call) == "relax.nn.max_pool1d" else relax.op.nn.avg_pool2d
    pooled = pool(rows, size, stride, padding, dilation, bool(a.ceil_mode), bool(a.count_include_pad))
    return ctx.view(ctx.emit(pooled), ctx.out_shape)


@rule("relax.nn.avg_pool2d")
def global_pool(ctx: Rewrite) -> relax.Expr | None:
    """A window that covers everything, once, is a mean."""
    window = tuple(int(v) for v in ctx.attrs.pool_size)
    if ctx.out_shape[2:] != (1, 1) or window != ctx.shape()[2:] or any(int(v) for v in ctx.attrs.padding):
        return None
    return ctx.emit(relax.op.mean(ctx.args[0], [2, 3], keepdims=True))
