"""Gradients of group norm (layer and instance norm included) and of batch norm with frozen statistics."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels import frozen_norm as frozen
from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.normalisation import NormSpec, group_norm_input_grad, group_norm_scale_grad


def _shift_grad(ctx: GradientContext, dy: relax.Expr, shape: tuple[int, int, int]) -> relax.Var:
    """dβ: the plain sum of dy, by the kernel of any bias."""
    view = ctx.emit(relax.op.reshape(dy, shape))
    return ctx.r.kernel(bias_grad(*shape), [view], (shape[1],))


@gradient("kernel.group_norm")
def group_norm_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dx from x and the saved mean and 1/σ; dγ and dβ only where they are trained."""
    spec = NormSpec.from_dict(kernel_spec(ctx.kernel))
    x, gamma, _ = ctx.args
    dy, stats = ctx.dy[0], ctx.emit(relax.TupleGetItem(ctx.out, 1))
    result: list[Adjoint] = [None, None, None]
    if ctx.needs[0]:
        result[0] = ctx.r.kernel(group_norm_input_grad(spec), [x, gamma, stats, dy], spec.shape)
    if ctx.needs[1]:
        result[1] = ctx.r.kernel(group_norm_scale_grad(spec), [x, stats, dy], spec.affine_shape)
    if ctx.needs[2]:
        view = spec.shape if spec.shared else (1, spec.groups * spec.size, spec.inner)
        result[2] = _shift_grad(ctx, dy, view)
    return result


@gradient("kernel.frozen_norm")
def frozen_norm_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dx needs no activation; dγ needs x; the statistics have no gradient."""
    spec = kernel_spec(ctx.kernel)
    channels, inner = spec["channels"], spec["inner"]
    x, rstd, shift, gamma, _ = ctx.args
    result: list[Adjoint] = [None] * 5
    if ctx.needs[0]:
        kernel = frozen.frozen_norm_input_grad(channels, inner)
        result[0] = ctx.r.kernel(kernel, [rstd, gamma, ctx.dy], (channels, inner))
    if ctx.needs[3]:
        kernel = frozen.frozen_norm_scale_grad(channels, inner)
        result[3] = ctx.r.kernel(kernel, [x, rstd, shift, ctx.dy], (channels,))
    if ctx.needs[4]:
        result[4] = _shift_grad(ctx, ctx.dy, (1, channels, inner))
    return result
