"""Gradients of running sums and of products over an axis."""

from __future__ import annotations

import math
from dataclasses import replace

from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.gradients.reductions import reduced_axes
from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.cumulative import CumulativeSpec, product_grad, running_sum
from tvm_tinytrain.passes.rewriting import shape_of


@gradient("kernel.running_sum")
def running_sum_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The running sum of dy from the other end."""
    spec = CumulativeSpec.from_dict(kernel_spec(ctx.kernel))
    back = replace(spec, reverse=not spec.reverse)
    return [ctx.r.kernel(running_sum(back), [ctx.dy], spec.shape)]


@gradient("relax.prod")
def product_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy times the product of the others."""
    shape, axes = shape_of(ctx.args[0]), reduced_axes(ctx)
    if len(axes) != 1:
        raise UnsupportedOperatorError(
            "derive backward", "relax.prod", f"axes {axes}", "one axis",
            "run Canonicalize first: it takes one axis after the other",
        )  # fmt: skip
    outer, inner = math.prod(shape[: axes[0]]), math.prod(shape[axes[0] + 1 :])
    flat = (outer, shape[axes[0]], inner)
    x, dy = (ctx.emit(relax.op.reshape(v, s)) for v, s in ((ctx.args[0], flat), (ctx.dy, (outer, inner))))
    back = ctx.r.kernel(product_grad(*flat), [x, dy], flat)
    return [ctx.emit(relax.op.reshape(back, shape))]
