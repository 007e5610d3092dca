"""Gradients of broadcasting arithmetic and of clamps that no layer took in."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.rewriting import shape_of


def unbroadcast(ctx: GradientContext, grad: relax.Expr, like: relax.Expr) -> relax.Expr:
    """Sums ``grad`` over the axes along which ``like`` was broadcast."""
    have, want = shape_of(grad), shape_of(like)
    if have == want:
        return grad
    extra = len(have) - len(want)
    axes = list(range(extra)) + [i + extra for i, d in enumerate(want) if d == 1 and have[i + extra] != 1]
    summed = ctx.emit(relax.op.sum(grad, axes)) if axes else grad
    return summed if shape_of(summed) == want else ctx.emit(relax.op.reshape(summed, want))


@gradient("relax.add")
def add_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The adjoint goes to both sides."""
    return [unbroadcast(ctx, ctx.dy, a) if n else None for a, n in zip(ctx.args, ctx.needs, strict=True)]


@gradient("relax.nn.relu")
def relu_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Where the output is positive."""
    shape = shape_of(ctx.out)
    return [ctx.r.kernel(clip_grad(shape, 0.0, None), [ctx.out, ctx.dy], shape)]


@gradient("relax.clip")
def clip_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Where the output lies strictly between the bounds."""
    low, high = (float(a.value) for a in ctx.call.args[1:])
    shape = shape_of(ctx.out)
    return [ctx.r.kernel(clip_grad(shape, low, high), [ctx.out, ctx.dy], shape), None, None]
