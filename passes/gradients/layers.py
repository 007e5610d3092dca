"""Gradients of the layers (our fused kernels) and of the losses."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels import losses
from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_input_grad, conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear_input_grad, linear_weight_grad
from tvm_tinytrain.passes.rewriting import shape_of


def through_clamp(ctx: GradientContext, spec: dict[str, object]) -> relax.Expr:
    """The adjoint before the clamp that the kernel ends with."""
    low, high = spec["low"], spec["high"]
    if low is None and high is None:
        return ctx.dy
    shape = shape_of(ctx.out)
    return ctx.r.kernel(clip_grad(shape, low, high), [ctx.out, ctx.dy], shape)  # type: ignore[arg-type]


@gradient("kernel.conv2d")
def conv2d_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dx first (it reads the weight that an update fused behind dw will change), then dw, then db."""
    described = kernel_spec(ctx.kernel)
    spec = Conv2DSpec.from_dict(described)
    dy = through_clamp(ctx, described)
    x, weight = ctx.args[0], ctx.args[1]
    dx = ctx.r.kernel(conv2d_input_grad(spec), [dy, weight], shape_of(x)) if ctx.needs[0] else None
    dw = ctx.r.kernel(conv2d_weight_grad(spec), [x, dy], spec.weight_shape) if ctx.needs[1] else None
    if len(ctx.args) == 2:
        return [dx, dw]
    return [
        dx,
        dw,
        _bias(ctx, dy, spec.out_channels, spec.out_height * spec.out_width) if ctx.needs[2] else None,
    ]


@gradient("kernel.linear")
def linear_gradient(ctx: GradientContext) -> list[Adjoint]:
    """As `conv2d_gradient`."""
    described = kernel_spec(ctx.kernel)
    spec = LinearSpec.from_dict(described)
    dy = through_clamp(ctx, described)
    x, weight = ctx.args[0], ctx.args[1]
    dx = ctx.r.kernel(linear_input_grad(spec), [dy, weight], shape_of(x)) if ctx.needs[0] else None
    dw = ctx.r.kernel(linear_weight_grad(spec), [x, dy], spec.weight_shape) if ctx.needs[1] else None
    if len(ctx.args) == 2:
        return [dx, dw]
    db = None
    if ctx.needs[2]:
        flat = ctx.emit(relax.op.reshape(dy, (spec.rows, spec.out_features, 1)))
        db = ctx.r.kernel(bias_grad(spec.rows, spec.out_features, 1), [flat], (spec.out_features,))
    return [dx, dw, db]


def _bias(ctx: GradientContext, dy: relax.Expr, channels: int, pixels: int) -> relax.Var:
    flat = ctx.emit(relax.op.reshape(dy, (1, channels, pixels)))
    return ctx.r.kernel(bias_grad(1, channels, pixels), [flat], (channels,))


@gradient("kernel.softmax_cross_entropy")
def cross_entropy_gradient(ctx: GradientContext) -> list[Adjoint]:
    """softmax − target; the loss is the root, its adjoint is one."""
    spec = kernel_spec(ctx.kernel)
    kernel = losses.softmax_cross_entropy_grad(spec["classes"], spec["label_smoothing"])
    return [ctx.r.kernel(kernel, ctx.args, shape_of(ctx.args[0])), None]


@gradient("kernel.mse_loss", "kernel.bce_loss", "kernel.dot_loss")
def elementwise_loss_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The loss is the root, its adjoint is one."""
    kind = str(kernel_kind(ctx.kernel)).removesuffix("_loss")
    if kind == "dot":
        return [ctx.args[1], None]
    kernel = losses.elementwise_loss_grad(kind, kernel_spec(ctx.kernel)["size"])
    return [ctx.r.kernel(kernel, ctx.args, shape_of(ctx.args[0])), None]
