"""Gradients of operators that only move elements."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.rewriting import shape_of


@gradient("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
def reshape_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The adjoint in the operand's shape: a view, nothing moves."""
    back: list[Adjoint] = [ctx.emit(relax.op.reshape(ctx.dy, shape_of(ctx.args[0])))]
    return back + [None] * (len(ctx.args) - 1)
