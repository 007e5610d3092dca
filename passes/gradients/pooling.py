"""Gradients of pooling and of the mean."""

from __future__ import annotations

import math

from tvm import relax

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.pooling import PoolSpec, avg_pool2d_grad, max_pool2d_grad
from tvm_tinytrain.passes.rewriting import shape_of


def pool_spec(ctx: GradientContext) -> PoolSpec:
    """The pooling's shape from the forward call."""
    _, channels, height, width = shape_of(ctx.args[0])
    a = ctx.attrs
    include = bool(getattr(a, "count_include_pad", False))
    kernel, stride, padding, dilation = (
        tuple(int(v) for v in values) for values in (a.pool_size, a.strides, a.padding, a.dilation)
    )
    out = shape_of(ctx.out)[2:]
    return PoolSpec(channels, height, width, *out, kernel, stride, padding, dilation, include)  # type: ignore[arg-type]


@gradient("relax.nn.max_pool2d")
def max_pool2d_gradient(ctx: GradientContext) -> list[Adjoint]:
    """To the first maximum of each window."""
    spec = pool_spec(ctx)
    return [ctx.r.kernel(max_pool2d_grad(spec), [ctx.args[0], ctx.dy], spec.x_shape)]


@gradient("relax.nn.avg_pool2d")
def avg_pool2d_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Evenly over each window."""
    spec = pool_spec(ctx)
    return [ctx.r.kernel(avg_pool2d_grad(spec), [ctx.dy], spec.x_shape)]


@gradient("relax.mean")
def mean_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy / n, broadcast back over the reduced axes."""
    shape = shape_of(ctx.args[0])
    axes = (
        [int(v) % len(shape) for v in ctx.attrs.axis]
        if ctx.attrs.axis is not None
        else list(range(len(shape)))
    )
    kept = [1 if i in axes else d for i, d in enumerate(shape)]
    count = math.prod(shape[i] for i in axes)
    scaled = ctx.emit(relax.op.multiply(ctx.dy, relax.const(1.0 / count, "float32")))
    column = ctx.emit(relax.op.reshape(scaled, kept)) if tuple(kept) != shape_of(scaled) else scaled
    return [ctx.emit(relax.op.broadcast_to(column, shape))]
