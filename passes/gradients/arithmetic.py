"""Gradients of broadcasting arithmetic and of clamps that no layer took in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tvm import relax

from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.extremum import extremum_grad
from tvm_tinytrain.passes.kernels.select import SelectSpec, select
from tvm_tinytrain.passes.rewriting import shape_of

_SMALLEST = 1.1754943508222875e-38
"""Of float32's normal numbers above 0."""


def unbroadcast(ctx: GradientContext, grad: relax.Expr, like: relax.Expr) -> relax.Expr:
    """Sums ``grad`` over the axes along which ``like`` was broadcast."""
    have, want = shape_of(grad), shape_of(like)
    if have == want:
        return grad
    extra = len(have) - len(want)
    axes = list(range(extra)) + [i + extra for i, d in enumerate(want) if d == 1 and have[i + extra] != 1]
    summed = ctx.emit(relax.op.sum(grad, axes)) if axes else grad
    return summed if shape_of(summed) == want else ctx.emit(relax.op.reshape(summed, want))


def for_each_operand(ctx: GradientContext, adjoint: Callable[[int], relax.Expr]) -> list[Adjoint]:
    """``adjoint(i)``, summed to the operand's shape, for each operand that wants one.

    Parameters come last: an update fused behind a parameter's gradient must not change what the other adjoint still reads.
    """
    params = set(ctx.r.func.params)
    result: list[Adjoint] = [None] * len(ctx.args)
    wanted = [i for i, needed in enumerate(ctx.needs) if needed]
    for i in sorted(wanted, key=lambda i: ctx.args[i] in params):
        result[i] = unbroadcast(ctx, adjoint(i), ctx.args[i])
    return result


@gradient("relax.add")
def add_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The adjoint goes to both sides."""
    return for_each_operand(ctx, lambda i: ctx.dy)


@gradient("relax.subtract")
def subtract_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy and −dy."""
    return for_each_operand(ctx, lambda i: ctx.emit(relax.op.negative(ctx.dy)) if i else ctx.dy)


@gradient("relax.negative")
def negative_gradient(ctx: GradientContext) -> list[Adjoint]:
    """−dy."""
    return [ctx.emit(relax.op.negative(ctx.dy))]


@gradient("relax.multiply")
def multiply_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy times the other side; of a square 2·x·dy at once."""
    left, right = ctx.args
    if left == right:
        twice = ctx.emit(relax.op.multiply(ctx.dy, relax.const(2.0, "float32")))
        return [ctx.emit(relax.op.multiply(twice, left)) if ctx.needs[0] else None, None]
    return for_each_operand(ctx, lambda i: ctx.emit(relax.op.multiply(ctx.dy, ctx.args[1 - i])))


@gradient("relax.divide")
def divide_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy / b, and −(dy / b) · y from the output, so that the numerator need not be kept."""
    quotient = ctx.emit(relax.op.divide(ctx.dy, ctx.args[1]))

    def adjoint(i: int) -> relax.Expr:
        if i == 0:
            return quotient
        return ctx.emit(relax.op.negative(ctx.emit(relax.op.multiply(quotient, ctx.out))))

    return for_each_operand(ctx, adjoint)


@gradient("relax.power")
def power_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy · b · aᵇ⁻¹, and dy · y · log a, which is 0 where a is: of a trained exponent, as in generalised mean pooling."""
    a, b = ctx.args

    def adjoint(i: int) -> relax.Expr:
        if i == 0:
            less = ctx.emit(relax.op.subtract(b, relax.const(1.0, "float32")))
            slope = ctx.emit(relax.op.multiply(b, ctx.emit(relax.op.power(a, less))))
        else:
            above = ctx.emit(relax.op.maximum(a, relax.const(_SMALLEST, "float32")))
            slope = ctx.emit(relax.op.multiply(ctx.out, ctx.emit(relax.op.log(above))))
        return ctx.emit(relax.op.multiply(ctx.dy, slope))

    return for_each_operand(ctx, adjoint)


@gradient("relax.maximum", "relax.minimum")
def extremum_gradient(ctx: GradientContext) -> list[Adjoint]:
    """To the side that won; half to each where both are equal."""
    largest = str(ctx.call.op.name) == "relax.maximum"
    shape = shape_of(ctx.out)

    def adjoint(i: int) -> relax.Expr:
        mine, other = ctx.args[i], ctx.args[1 - i]
        kernel = extremum_grad(shape, shape_of(mine), shape_of(other), largest=largest)
        return ctx.r.kernel(kernel, [mine, other, ctx.dy], shape)

    return for_each_operand(ctx, adjoint)


@gradient("kernel.select")
def select_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy where the side was chosen, by the same comparison; what is compared has no gradient."""
    spec = SelectSpec.from_dict(kernel_spec(ctx.kernel))
    names = spec.tensors()
    compared = [v for n, v in zip(names, ctx.args, strict=True) if n in ("left", "right")]

    def adjoint(i: int) -> relax.Expr:
        a, b = (spec.shape, 0.0) if names[i] == "a" else (0.0, spec.shape)
        kernel = select(replace(spec, a=a, b=b))
        return ctx.r.kernel(kernel, [*compared, ctx.dy], spec.shape)

    ctx.needs[: len(compared)] = [False] * len(compared)
    return for_each_operand(ctx, adjoint)


@gradient("relax.floor", "relax.ceil", "relax.round", "relax.trunc", "relax.sign")
def step_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Zero: steps are flat."""
    return [None]


@gradient("relax.nn.relu")
def relu_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Where the output is positive."""
    shape = shape_of(ctx.out)
    return [ctx.r.kernel(clip_grad(shape, 0.0, None), [ctx.out, ctx.dy], shape)]


@gradient("relax.clip")
def clip_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Where the output lies strictly between the bounds."""
    low, high = (float(a.value) for a in ctx.call.args[1:])
    shape = shape_of(ctx.out)
    return [ctx.r.kernel(clip_grad(shape, low, high), [ctx.out, ctx.dy], shape), None, None]
