"""Running sums, and products over axes."""

from __future__ import annotations

import math

from tvm import relax

from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.cumulative import CumulativeSpec, running_sum
from tvm_tinytrain.passes.rewriting import dtype_of


@rule("relax.cumsum")
def cumulative_sum(ctx: Rewrite) -> relax.Expr | None:
    """One kernel; without an axis along all elements."""
    x, a = ctx.args[0], ctx.attrs
    if not ctx.is_float or dtype_of(x) != "float32":
        return None
    shape = (math.prod(ctx.shape()),) if a.axis is None else ctx.shape()
    axis = 0 if a.axis is None else int(a.axis) % len(shape)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    spec = CumulativeSpec(outer, shape[axis], inner, exclusive=bool(a.exclusive))
    return ctx.view(ctx.kernel(running_sum(spec), [ctx.view(x, spec.shape)], spec.shape), ctx.out_shape)


@rule("relax.prod")
def product_of_axes(ctx: Rewrite) -> relax.Expr | None:
    """One axis after the other."""
    axes = range(len(ctx.shape())) if ctx.attrs.axis is None else ctx.attrs.axis
    if len(axes) == 1:
        return None
    x = ctx.args[0]
    for axis in axes:
        x = ctx.emit(relax.op.prod(x, int(axis), keepdims=True))
    return ctx.view(x, ctx.out_shape)
