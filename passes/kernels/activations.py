"""Elementwise functions of one variable and their derivatives: one table, one forward kernel, one backward kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, make_kernel, remap_all

Params = tuple[float | None, ...]


@dataclass(frozen=True)
class Activation:
    """y = function(x; params), elementwise. See `FUNCTIONS` for the names and what their parameters mean."""

    function: str
    params: Params = ()

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Activation:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip; other keys are ignored."""
        return Activation(values["function"], tuple(values["params"]))

    @property
    def saves(self) -> Literal["x", "y"]:
        """What the derivative is computed from: the input or the output."""
        return FUNCTIONS[self.function].saves


@dataclass(frozen=True)
class Function:
    """``value(x, *params)``, and ``slope(v, *params)`` = dy/dx as a function of what is saved, v = x or v = y."""

    value: Callable[..., Any]
    slope: Callable[..., Any]
    saves: Literal["x", "y"]


def activation(act: Activation, shape: tuple[int, ...]) -> tirx.PrimFunc:
    """y = function(x). Arguments: x, y, both float32 of ``shape``."""
    function = FUNCTIONS[act.function]

    def body(x: Any, y: Any) -> None:
        with T.grid(*shape) as loops, T.sblock("activation"):
            at = remap_all(loops, len(shape))
            T.buffer_store(y, function.value(x[tuple(at)], *act.params), at)

    args = [Arg("x", shape), Arg("y", shape, role="out")]
    return make_kernel("activation", act, args, body, size=math.prod(shape), macs=0)


def activation_grad(act: Activation, shape: tuple[int, ...]) -> tirx.PrimFunc:
    """dx = dy · function'. Arguments: v (x or y, see `Activation.saves`), dy, dx, all float32 of ``shape``."""
    function = FUNCTIONS[act.function]

    def body(v: Any, dy: Any, dx: Any) -> None:
        with T.grid(*shape) as loops, T.sblock("activation_grad"):
            at = remap_all(loops, len(shape))
            slope = function.slope(v[tuple(at)], *act.params)
            T.buffer_store(dx, dy[tuple(at)] * slope, at)

    args = [Arg("v", shape), Arg("dy", shape), Arg("dx", shape, role="out")]
    return make_kernel("activation_grad", act, args, body, size=math.prod(shape), macs=0)


def _sigmoid(x: Any) -> Any:
    return f32(1.0) / (f32(1.0) + tirx.exp(f32(0.0) - x))


def _silu_slope(x: Any) -> Any:
    s = _sigmoid(x)
    return s * (f32(1.0) + x * (f32(1.0) - s))


def _gelu(x: Any) -> Any:
    return f32(0.5) * x * (f32(1.0) + tirx.erf(x * f32(math.sqrt(0.5))))


def _gelu_slope(x: Any) -> Any:
    density = tirx.exp(f32(-0.5) * x * x) * f32(1.0 / math.sqrt(2.0 * math.pi))
    return f32(0.5) * (f32(1.0) + tirx.erf(x * f32(math.sqrt(0.5)))) + x * density


_TANH_SCALE, _TANH_CUBE = math.sqrt(2.0 / math.pi), 0.044715


def _gelu_tanh_inner(x: Any) -> Any:
    return tirx.tanh(f32(_TANH_SCALE) * (x + f32(_TANH_CUBE) * x * x * x))


def _gelu_tanh_slope(x: Any) -> Any:
    t = _gelu_tanh_inner(x)
    inner = f32(_TANH_SCALE) * (f32(1.0) + f32(3.0 * _TANH_CUBE) * x * x)
    return f32(0.5) * (f32(1.0) + t) + f32(0.5) * x * (f32(1.0) - t * t) * inner


def _step(x: Any, above: Any, below: Any) -> Any:
    return tirx.Select(x > f32(0.0), above, below)


def _sign(x: Any) -> Any:
    return _step(x, f32(1.0), tirx.Select(x < f32(0.0), f32(-1.0), f32(0.0)))


def _ramp(x: Any, a: float, b: float, low: float | None, high: float | None) -> Any:
    value = x * f32(a) if a != 1.0 else x
    value = value + f32(b) if b != 0.0 else value
    value = tirx.max(value, f32(low)) if low is not None else value
    return tirx.min(value, f32(high)) if high is not None else value


def _ramp_slope(y: Any, a: float, b: float, low: float | None, high: float | None) -> Any:
    inside = all_of(True if low is None else y > f32(low), True if high is None else y < f32(high))
    return f32(a) if inside is True else tirx.Select(inside, f32(a), f32(0.0))


def _ramp_product_slope(x: Any, *ramp: Any) -> Any:
    r = _ramp(x, *ramp)
    return r + x * _ramp_slope(r, *ramp)


def _power(x: Any, exponent: float) -> Any:
    """x^p: products for whole p up to 8, else exp(p·log x), which wants x ≥ 0."""
    if exponent == 0.0:
        return f32(1.0)
    if float(exponent).is_integer() and abs(exponent) <= 8:
        value = x
        for _ in range(int(abs(exponent)) - 1):
            value = value * x
        return value if exponent > 0 else f32(1.0) / value
    if exponent in (0.5, -0.5):
        root = tirx.sqrt(x)
        return root if exponent > 0 else f32(1.0) / root
    return tirx.exp(f32(exponent) * tirx.log(x))


def _softplus(x: Any, beta: float, threshold: float) -> Any:
    soft = tirx.log(f32(1.0) + tirx.exp(tirx.min(f32(beta) * x, f32(threshold)))) * f32(1.0 / beta)
    return tirx.Select(f32(beta) * x > f32(threshold), x, soft)


def _softplus_slope(x: Any, beta: float, threshold: float) -> Any:
    return tirx.Select(f32(beta) * x > f32(threshold), f32(1.0), _sigmoid(f32(beta) * x))


def _elu(x: Any, alpha: float, scale: float) -> Any:
    # exp of the negative part only: the other branch of a Select is computed too and must not overflow
    return f32(scale) * _step(x, x, f32(alpha) * (tirx.exp(tirx.min(x, f32(0.0))) - f32(1.0)))


FUNCTIONS: dict[str, Function] = {
    "sigmoid": Function(_sigmoid, lambda y: y * (f32(1.0) - y), "y"),
    "tanh": Function(tirx.tanh, lambda y: f32(1.0) - y * y, "y"),
    "exp": Function(tirx.exp, lambda y: y, "y"),
    "log": Function(tirx.log, lambda x: f32(1.0) / x, "x"),
    "sqrt": Function(tirx.sqrt, lambda y: f32(0.5) / y, "y"),
    "rsqrt": Function(lambda x: f32(1.0) / tirx.sqrt(x), lambda y: f32(-0.5) * y * y * y, "y"),
    "abs": Function(tirx.abs, _sign, "x"),
    "erf": Function(tirx.erf, lambda x: tirx.exp(f32(0.0) - x * x) * f32(2.0 / math.sqrt(math.pi)), "x"),
    "sin": Function(tirx.sin, tirx.cos, "x"),
    "cos": Function(tirx.cos, lambda x: f32(0.0) - tirx.sin(x), "x"),
    "silu": Function(lambda x: x * _sigmoid(x), _silu_slope, "x"),
    "gelu": Function(_gelu, _gelu_slope, "x"),
    "gelu_tanh": Function(lambda x: f32(0.5) * x * (f32(1.0) + _gelu_tanh_inner(x)), _gelu_tanh_slope, "x"),
    # slope for x ≤ 0; from the output where that keeps the sign (slope ≥ 0), from the input otherwise
    "leaky_relu": Function(
        lambda x, a: _step(x, x, f32(a) * x), lambda y, a: _step(y, f32(1.0), f32(a)), "y"
    ),
    "leaky_relu_negative": Function(
        lambda x, a: _step(x, x, f32(a) * x), lambda x, a: _step(x, f32(1.0), f32(a)), "x"
    ),
    # a, b, low, high: min(max(a·x + b, low), high), a bound left out where it is None (hardsigmoid: 1/6, 1/2, 0, 1)
    "ramp": Function(_ramp, _ramp_slope, "y"),
    # the same times x (hardswish)
    "ramp_product": Function(lambda x, *ramp: x * _ramp(x, *ramp), _ramp_product_slope, "x"),
    # exponent
    "power": Function(_power, lambda x, p: f32(p) * _power(x, p - 1.0), "x"),
    # β, threshold on β·x above which it is the identity, as torch.nn.Softplus
    "softplus": Function(_softplus, _softplus_slope, "x"),
    # α > 0, scale > 0: scale · (x > 0 ? x : α(eˣ − 1)); SELU has a scale other than one
    "elu": Function(_elu, lambda y, a, s: _step(y, f32(s), y + f32(a * s)), "y"),
}
