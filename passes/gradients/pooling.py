"""Gradients of pooling."""

from __future__ import annotations

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.pooling import (
    PoolSpec,
    adaptive_avg_pool2d_grad,
    avg_pool2d_grad,
    max_pool2d_grad,
)
from tvm_tinytrain.passes.rewriting import shape_of


def pool_spec(ctx: GradientContext) -> PoolSpec:
    """The pooling's shape from the forward call."""
    _, channels, height, width = shape_of(ctx.args[0])
    a = ctx.attrs
    include = bool(getattr(a, "count_include_pad", False))
    kernel, stride, padding, dilation = (
        tuple(int(v) for v in values) for values in (a.pool_size, a.strides, a.padding, a.dilation)
    )
    rows, columns = shape_of(ctx.out)[2:]
    return PoolSpec(channels, height, width, rows, columns, kernel, stride, padding, dilation, include)  # type: ignore[arg-type]


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


@gradient("relax.nn.adaptive_avg_pool2d")
def adaptive_avg_pool2d_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Evenly over each window; the windows' sizes differ by one where the output does not divide the input."""
    shape, out = shape_of(ctx.args[0]), shape_of(ctx.out)
    kernel = adaptive_avg_pool2d_grad(shape[1:], out[2:])  # type: ignore[arg-type]
    return [ctx.r.kernel(kernel, [ctx.dy], shape)]
