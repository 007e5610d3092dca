"""Gradients of products of activations and of the transposed convolution."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.passes.gradients.layers import through_clamp
from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.conv2d_transpose import (
    conv2d_transpose_input_grad,
    conv2d_transpose_weight_grad,
    transposed_weight_shape,
)
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.matmul import MatmulSpec, matmul
from tvm_tinytrain.passes.rewriting import shape_of


@gradient("kernel.matmul")
def matmul_gradient(ctx: GradientContext) -> list[Adjoint]:
    """da = dc · bᵀ and db = aᵀ · dc as products that read the operands in place: nothing is transposed in memory."""
    spec = MatmulSpec.from_dict(kernel_spec(ctx.kernel))
    tensors = {"a": ctx.args[0], "b": ctx.args[1], "dc": ctx.dy}
    params = set(ctx.r.func.params)
    result: list[Adjoint] = [None, None]
    for i in sorted(range(2), key=lambda i: ctx.args[i] in params):  # see for_each_operand
        if ctx.needs[i]:
            grad, names = spec.b_grad() if i else spec.a_grad()
            result[i] = ctx.r.kernel(matmul(grad), [tensors[n] for n in names], grad.c_shape)
    return result


@gradient("kernel.conv2d_transpose")
def conv2d_transpose_gradient(ctx: GradientContext) -> list[Adjoint]:
    """As `conv2d_gradient`, with the roles of forward and backward swapped."""
    described = kernel_spec(ctx.kernel)
    spec = Conv2DSpec.from_dict(described)
    dy = through_clamp(ctx, described)
    x, weight = ctx.args[0], ctx.args[1]
    result: list[Adjoint] = [None] * len(ctx.args)
    if ctx.needs[0]:
        result[0] = ctx.r.kernel(conv2d_transpose_input_grad(spec), [dy, weight], shape_of(x))
    if ctx.needs[1]:
        result[1] = ctx.r.kernel(conv2d_transpose_weight_grad(spec), [x, dy], transposed_weight_shape(spec))
    if len(ctx.args) == 3 and ctx.needs[2]:
        view = (1, spec.in_channels, spec.height * spec.width)
        flat = ctx.emit(relax.op.reshape(dy, view))
        result[2] = ctx.r.kernel(bias_grad(*view), [flat], (spec.in_channels,))
    return result
