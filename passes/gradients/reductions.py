"""Gradients of sums, means, variances and extrema over axes."""

from __future__ import annotations

import math

from tvm import relax

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.rewriting import shape_of


def reduced_axes(ctx: GradientContext) -> list[int]:
    """The axes that the call reduces, as non-negative numbers."""
    rank = len(shape_of(ctx.args[0]))
    return list(range(rank)) if ctx.attrs.axis is None else [int(v) % rank for v in ctx.attrs.axis]


def kept_shape(ctx: GradientContext) -> tuple[int, ...]:
    """The operand's shape with ones at the reduced axes, so that it broadcasts against the operand."""
    axes = reduced_axes(ctx)
    return tuple(1 if i in axes else d for i, d in enumerate(shape_of(ctx.args[0])))


def keep_axes(ctx: GradientContext, value: relax.Expr) -> relax.Expr:
    """A value of the result's shape, reshaped so that it broadcasts against the operand."""
    kept = kept_shape(ctx)
    return value if shape_of(value) == kept else ctx.emit(relax.op.reshape(value, kept))


def count(ctx: GradientContext) -> int:
    """How many elements go into one result."""
    shape = shape_of(ctx.args[0])
    return math.prod(shape[i] for i in reduced_axes(ctx))


def times(ctx: GradientContext, value: relax.Expr, factor: float) -> relax.Expr:
    """A value times a constant."""
    return ctx.emit(relax.op.multiply(value, relax.const(factor, "float32"))) if factor != 1.0 else value


@gradient("relax.sum")
def sum_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy, broadcast back over the reduced axes."""
    return [ctx.emit(relax.op.broadcast_to(keep_axes(ctx, ctx.dy), shape_of(ctx.args[0])))]


@gradient("relax.mean")
def mean_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy / n, broadcast back over the reduced axes."""
    scaled = times(ctx, ctx.dy, 1.0 / count(ctx))
    return [ctx.emit(relax.op.broadcast_to(keep_axes(ctx, scaled), shape_of(ctx.args[0])))]


@gradient("relax.variance")
def variance_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy · 2 (x − mean) / n."""
    x = ctx.args[0]
    mean = ctx.emit(relax.op.mean(x, reduced_axes(ctx), keepdims=True))
    centred = ctx.emit(relax.op.subtract(x, mean))
    scaled = times(ctx, keep_axes(ctx, ctx.dy), 2.0 / count(ctx))
    return [ctx.emit(relax.op.multiply(centred, scaled))]


@gradient("relax.max", "relax.min")
def reduced_extremum_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Evenly over the elements that are the extremum, as torch.amax."""
    x = ctx.args[0]
    hit = ctx.emit(relax.op.astype(ctx.emit(relax.op.equal(x, keep_axes(ctx, ctx.out))), "float32"))
    ties = ctx.emit(relax.op.sum(hit, reduced_axes(ctx), keepdims=True))
    share = ctx.emit(relax.op.divide(keep_axes(ctx, ctx.dy), ties))
    return [ctx.emit(relax.op.multiply(hit, share))]
