"""Elementwise functions: from the front ends' decompositions to one kernel each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tvm import relax

from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.activations import Activation, activation
from tvm_tinytrain.passes.rewriting import dtype_of, op_name, shape_of


@dataclass(frozen=True)
class Ramp:
    """Known about a variable: it is min(max(a·x + b, low), high), times x where ``product`` is set."""

    x: relax.Expr
    a: float = 1.0
    b: float = 0.0
    low: float | None = None
    high: float | None = None
    product: bool = False

    def scaled(self, factor: float) -> Ramp:
        """Times a positive factor."""
        low, high = (None if v is None else v * factor for v in (self.low, self.high))
        return replace(self, a=self.a * factor, b=self.b * factor, low=low, high=high)

    def shifted(self, offset: float) -> Ramp:
        """Plus an offset."""
        low, high = (None if v is None else v + offset for v in (self.low, self.high))
        return replace(self, b=self.b + offset, low=low, high=high)

    def clipped(self, low: float | None, high: float | None) -> Ramp:
        """Clamped once more: the inner clamp's bounds are clamped by the outer one's."""

        def clamp(value: float) -> float:
            value = value if low is None else max(value, low)
            return value if high is None else min(value, high)

        new_low = low if self.low is None else clamp(self.low)
        new_high = high if self.high is None else clamp(self.high)
        return replace(self, low=new_low, high=new_high)

    @property
    def bounded(self) -> bool:
        """Whether there is a clamp in it."""
        return self.low is not None or self.high is not None


def emit_activation(ctx: Rewrite, x: relax.Expr, act: Activation) -> relax.Var:
    """A call of the activation's kernel."""
    shape = shape_of(x)
    if shape == ():  # a kernel wants an axis to loop over
        value = emit_activation(ctx, ctx.emit(relax.op.reshape(x, (1,))), act)
        return ctx.emit(relax.op.reshape(value, ()))
    return ctx.kernel(activation(act, shape), [x], shape)


def emit_ramp(ctx: Rewrite, ramp: Ramp) -> relax.Var:
    """A call of the kernel that computes the whole ramp from x, with the fact noted."""
    name = "ramp_product" if ramp.product else "ramp"
    var = emit_activation(ctx, ramp.x, Activation(name, (ramp.a, ramp.b, ramp.low, ramp.high)))
    ctx.facts[var] = ramp
    return var


def ramp_of(ctx: Rewrite, expr: relax.Expr) -> Ramp:
    """What is known about an operand; by itself it is its own ramp. Not looked through where others read it too."""
    fact = ctx.facts.get(expr)
    if isinstance(fact, Ramp) and ctx.reads.get(expr, 0) == 1:
        return fact
    return Ramp(expr)


PLAIN = {
    "relax.sigmoid": "sigmoid", "relax.tanh": "tanh", "relax.exp": "exp", "relax.log": "log", "relax.sqrt": "sqrt",
    "relax.rsqrt": "rsqrt", "relax.abs": "abs", "relax.erf": "erf", "relax.nn.silu": "silu", "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh", "relax.sin": "sin", "relax.cos": "cos",
}  # fmt: skip


@rule(*PLAIN)
def plain_function(ctx: Rewrite) -> relax.Expr | None:
    """An operator that is a function of the table."""
    if dtype_of(ctx.binding.var) != "float32":
        return None
    var = emit_activation(ctx, ctx.args[0], Activation(PLAIN[op_name(ctx.call)]))
    ctx.facts[var] = (PLAIN[op_name(ctx.call)], ctx.args[0])
    return var


@rule("relax.square")
def square(ctx: Rewrite) -> relax.Expr | None:
    """x · x."""
    return ctx.emit(relax.op.multiply(ctx.args[0], ctx.args[0]))


@rule("relax.power")
def power(ctx: Rewrite) -> relax.Expr | None:
    """Of a known exponent: roots and products instead of logarithms."""
    exponent = ctx.scalar(ctx.args[1])
    if exponent is None or dtype_of(ctx.binding.var) != "float32" or ctx.shape() != ctx.out_shape:
        return None
    if exponent == 1.0:
        return ctx.args[0]
    if exponent == 2.0:
        return square(ctx)
    named = {0.5: "sqrt", -0.5: "rsqrt"}.get(exponent)
    act = Activation(named) if named else Activation("power", (exponent,))
    return emit_activation(ctx, ctx.args[0], act)


@rule("relax.nn.leakyrelu")
def leaky_relu(ctx: Rewrite) -> relax.Expr | None:
    """A slope of zero is ReLU, a negative one needs the input for its gradient."""
    slope = float(ctx.attrs.alpha)
    if slope == 0.0:
        return ctx.emit(relax.op.nn.relu(ctx.args[0]))
    name = "leaky_relu" if slope > 0.0 else "leaky_relu_negative"
    return emit_activation(ctx, ctx.args[0], Activation(name, (slope,)))


@rule("relax.nn.softplus")
def softplus(ctx: Rewrite) -> relax.Expr | None:
    """As torch.nn.Softplus."""
    params = (float(ctx.attrs.beta), float(ctx.attrs.threshold))
    return emit_activation(ctx, ctx.args[0], Activation("softplus", params))


@rule("relax.nn.selu")
def selu(ctx: Rewrite) -> relax.Expr | None:
    """An ELU with the constants of Klambauer et al., 2017."""
    return emit_activation(ctx, ctx.args[0], Activation("elu", (1.6732632423543772, 1.0507009873554805)))


@rule("relax.nn.prelu")
def prelu(ctx: Rewrite) -> relax.Expr | None:
    """max(x, 0) + α · min(x, 0), so that α gets its gradient by arithmetic."""
    x, alpha = ctx.args
    axis = int(ctx.attrs.axis) % len(ctx.out_shape)
    column = [ctx.shape(1)[0] if i == axis else 1 for i in range(len(ctx.out_shape))]
    below = emit_activation(ctx, x, Activation("ramp", (1.0, 0.0, None, 0.0)))
    scaled = ctx.emit(relax.op.multiply(below, ctx.view(alpha, column)))
    return ctx.emit(relax.op.add(ctx.emit(relax.op.nn.relu(x)), scaled))


@rule("relax.clip")
def clip(ctx: Rewrite) -> relax.Expr | None:
    """Clamps of clamps and of lines in one; a bound at infinity is none."""
    x = ctx.args[0]
    if not ctx.is_float:
        return None
    low, high = (float(a.value) for a in ctx.call.args[1:])
    bounds = (None if low == -math.inf else low, None if high == math.inf else high)
    if bounds == (None, None):
        return x
    inner = ramp_of(ctx, x)
    ramp = inner.clipped(*bounds) if not inner.product else Ramp(x).clipped(*bounds)
    if (ramp.a, ramp.b) == (1.0, 0.0) and ramp.low is not None and (ramp.high is not None or ramp.low == 0.0):
        # the forms that a layer takes in
        if ramp.high is None:
            var = ctx.emit(relax.op.nn.relu(ramp.x))
        else:
            var = ctx.emit(relax.op.clip(ramp.x, ramp.low, ramp.high))
        ctx.facts[var] = ramp
        return var
    return emit_ramp(ctx, ramp)


@rule("relax.maximum", "relax.minimum")
def clamp_by_constant(ctx: Rewrite) -> relax.Expr | None:
    """Of a tensor and a number: a clamp on one side."""
    x, bound = _with_constant(ctx, commutes=True)
    if bound is None:
        return None
    inner = ramp_of(ctx, x)
    inner = Ramp(x) if inner.product else inner
    low, high = (bound, None) if op_name(ctx.call) == "relax.maximum" else (None, bound)
    return emit_ramp(ctx, inner.clipped(low, high))


@rule("relax.nn.relu")
def relu(ctx: Rewrite) -> relax.Expr | None:
    """A clamp at zero, noted for a clamp that follows."""
    inner = ramp_of(ctx, ctx.args[0])
    if inner.bounded and not inner.product:
        return emit_ramp(ctx, inner.clipped(0.0, None))
    var = ctx.emit(ctx.call)
    ctx.facts[var] = Ramp(ctx.args[0], low=0.0)
    return var


@rule("relax.add", "relax.subtract")
def shift(ctx: Rewrite) -> relax.Expr | None:
    """Plus or minus a constant: noted; a clamp before it takes it in."""
    x, offset = _with_constant(ctx, commutes=op_name(ctx.call) == "relax.add")
    if offset is None:
        return None
    if offset == 0.0:
        return x
    ramp = ramp_of(ctx, x)
    ramp = Ramp(x) if ramp.product else ramp
    return _line(ctx, ramp.shifted(offset if op_name(ctx.call) == "relax.add" else -offset))


@rule("relax.multiply", "relax.divide")
def scale(ctx: Rewrite) -> relax.Expr | None:
    """Times or divided by a positive constant: noted; a clamp before it takes it in."""
    x, factor = _with_constant(ctx, commutes=op_name(ctx.call) == "relax.multiply")
    if factor is None or factor <= 0.0:
        return None
    if factor == 1.0:
        return x
    return _line(
        ctx, ramp_of(ctx, x).scaled(factor if op_name(ctx.call) == "relax.multiply" else 1.0 / factor)
    )


def _with_constant(ctx: Rewrite, *, commutes: bool) -> tuple[relax.Expr, float | None]:
    """The tensor and the scalar of a binary operator, None for the scalar where it is no such pair."""
    for x, constant in [ctx.args, ctx.args[::-1]] if commutes else [ctx.args]:
        value = ctx.scalar(constant)
        if value is not None and ctx.scalar(x) is None and shape_of(x) == ctx.out_shape and ctx.is_float:
            return x, value
    return ctx.args[0], None


def _line(ctx: Rewrite, ramp: Ramp) -> relax.Expr:
    if ramp.bounded:
        return emit_ramp(ctx, ramp)
    var = ctx.emit(ctx.call)
    ctx.facts[var] = ramp
    return var


@rule("relax.add")
def elu(ctx: Rewrite) -> relax.Expr | None:
    """max(x, 0) + α (exp(min(x, 0)) − 1)."""
    for positive, tail in (ctx.args, ctx.args[::-1]):
        line = ctx.facts.get(tail)
        if not isinstance(line, Ramp) or line.bounded or line.a != -line.b or line.a <= 0.0:
            continue
        function = ctx.facts.get(line.x)
        if not isinstance(function, tuple) or function[0] != "exp":
            continue
        below, above = ctx.facts.get(function[1]), ctx.facts.get(positive)
        if isinstance(below, Ramp) and above == Ramp(below.x, low=0.0) and below == Ramp(below.x, high=0.0):
            return emit_activation(ctx, below.x, Activation("elu", (line.a, 1.0)))
    return None


@rule("relax.multiply")
def product_with_gate(ctx: Rewrite) -> relax.Expr | None:
    """x · sigmoid(x) and x · ramp(x)."""
    for x, gate in (ctx.args, ctx.args[::-1]):
        fact = ctx.facts.get(gate)
        if fact == ("sigmoid", x):
            return emit_activation(ctx, x, Activation("silu"))
        if isinstance(fact, Ramp) and fact.x == x and fact.bounded and not fact.product:
            return emit_ramp(ctx, replace(fact, product=True))
    return None
