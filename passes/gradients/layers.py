"""Gradients of the layers (our fused kernels) and of the losses."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, tirx

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


def layer_adjoints(
    ctx: GradientContext,
    dy: relax.Expr,
    input_grad: Callable[[], tirx.PrimFunc],
    weight_grad: Callable[[], tirx.PrimFunc],
    rows: tuple[int, int, int],
) -> list[Adjoint]:
    """[dx, dw, db] of a kernel with arguments x, w and, where it has one, b, as far as they are needed.

    dx comes first: it reads the weight that an update fused behind dw will change. ``rows``: ``dy`` as [rows, channels, pixels].
    """
    x, weight = ctx.args[0], ctx.args[1]
    found: list[Adjoint] = [None] * len(ctx.args)
    if ctx.needs[0]:
        found[0] = ctx.r.kernel(input_grad(), [dy, weight], shape_of(x))
    if ctx.needs[1]:
        found[1] = ctx.r.kernel(weight_grad(), [x, dy], shape_of(weight))
    if len(found) == 3 and ctx.needs[2]:
        flat = ctx.emit(relax.op.reshape(dy, rows))
        found[2] = ctx.r.kernel(bias_grad(*rows), [flat], (rows[1],))
    return found


@gradient("kernel.conv2d")
def conv2d_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Two convolutions, and sums over pixels."""
    described = kernel_spec(ctx.kernel)
    spec = Conv2DSpec.from_dict(described)
    rows = (1, spec.out_channels, spec.out_height * spec.out_width)
    dy = through_clamp(ctx, described)
    return layer_adjoints(ctx, dy, lambda: conv2d_input_grad(spec), lambda: conv2d_weight_grad(spec), rows)


@gradient("kernel.linear")
def linear_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Two products, and sums over rows."""
    described = kernel_spec(ctx.kernel)
    spec = LinearSpec.from_dict(described)
    rows = (spec.rows, spec.out_features, 1)
    dy = through_clamp(ctx, described)
    return layer_adjoints(ctx, dy, lambda: linear_input_grad(spec), lambda: linear_weight_grad(spec), rows)


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
