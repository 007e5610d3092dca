"""Gradients of products of activations and of the transposed convolution."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.gradients.layers import layer_adjoints, through_clamp
from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.conv2d_transpose import (
    conv2d_transpose_input_grad,
    conv2d_transpose_weight_grad,
)
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.matmul import MatmulSpec, matmul, product_spec
from tvm_tinytrain.passes.rewriting import shape_of


@gradient("kernel.matmul")
def matmul_gradient(ctx: GradientContext) -> list[Adjoint]:
    """da = dc · bᵀ and db = aᵀ · dc as products that read the operands in place: nothing is transposed in memory."""
    return _product_gradient(ctx, MatmulSpec.from_dict(kernel_spec(ctx.kernel)))


@gradient("relax.matmul")
def leftover_matmul_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Of a product with a parameter that is no layer, because something else reads it in another form."""
    spec = product_spec(shape_of(ctx.args[0]), shape_of(ctx.args[1]), shape_of(ctx.out))
    if spec is None:
        raise UnsupportedOperatorError(
            "derive backward", "relax.matmul", f"shapes {shape_of(ctx.args[0])} and {shape_of(ctx.args[1])}",
            "one side without batch axes, or equal ones", "run Canonicalize first",
        )  # fmt: skip
    return _product_gradient(ctx, spec)


def _product_gradient(ctx: GradientContext, spec: MatmulSpec) -> list[Adjoint]:
    def view(value: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        return value if shape_of(value) == shape else ctx.emit(relax.op.reshape(value, shape))

    tensors = {
        "a": view(ctx.args[0], spec.a_shape), "b": view(ctx.args[1], spec.b_shape), "dc": view(ctx.dy, spec.c_shape)
    }  # fmt: skip
    params = set(ctx.r.func.params)
    result: list[Adjoint] = [None, None]
    for i in sorted(range(2), key=lambda i: ctx.args[i] in params):  # see for_each_operand
        if ctx.needs[i]:
            grad, names = spec.b_grad() if i else spec.a_grad()
            out = ctx.r.kernel(matmul(grad), [tensors[n] for n in names], grad.c_shape)
            result[i] = view(out, shape_of(ctx.args[i]))
    return result


@gradient("kernel.conv2d_transpose")
def conv2d_transpose_gradient(ctx: GradientContext) -> list[Adjoint]:
    """As `conv2d_gradient`, with the roles of forward and backward swapped."""
    described = kernel_spec(ctx.kernel)
    spec = Conv2DSpec.from_dict(described)
    rows = (1, spec.in_channels, spec.height * spec.width)
    dy = through_clamp(ctx, described)
    return layer_adjoints(
        ctx, dy, lambda: conv2d_transpose_input_grad(spec), lambda: conv2d_transpose_weight_grad(spec), rows
    )
