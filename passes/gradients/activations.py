"""Gradients of elementwise functions and of softmax."""

from __future__ import annotations

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.activations import Activation, activation_grad
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.softmax import SoftmaxSpec, softmax_grad
from tvm_tinytrain.passes.rewriting import shape_of


@gradient("kernel.activation")
def activation_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy times the slope, from the output where that suffices."""
    act = Activation.from_dict(kernel_spec(ctx.kernel))
    shape = shape_of(ctx.out)
    saved = ctx.args[0] if act.saves == "x" else ctx.out
    return [ctx.r.kernel(activation_grad(act, shape), [saved, ctx.dy], shape)]


@gradient("kernel.softmax")
def softmax_gradient(ctx: GradientContext) -> list[Adjoint]:
    """From the output alone, of softmax and log-softmax alike."""
    spec = SoftmaxSpec.from_dict(kernel_spec(ctx.kernel))
    return [ctx.r.kernel(softmax_grad(spec), [ctx.out, ctx.dy], spec.shape)]
