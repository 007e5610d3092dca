"""Values that are known at compile time: index arithmetic that front ends write as tensor operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tvm_tinytrain.passes.canonical.registry import Rewrite
from tvm_tinytrain.passes.rewriting import dtype_of, op_name

LARGEST = 4096
"""Elements; a larger constant stays an operator rather than filling flash."""

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "relax.add": np.add, "relax.subtract": np.subtract, "relax.multiply": np.multiply, "relax.divide": np.divide,
    "relax.floor_divide": np.floor_divide, "relax.mod": np.fmod, "relax.floor_mod": np.mod, "relax.abs": np.abs,
    "relax.negative": np.negative, "relax.maximum": np.maximum, "relax.minimum": np.minimum, "relax.floor": np.floor,
    "relax.ceil": np.ceil, "relax.power": np.power, "relax.sqrt": np.sqrt,
}  # fmt: skip


def evaluate(ctx: Rewrite) -> relax.Expr | None:
    """The result as a constant, or None where an operand is unknown or the operator is not one of those above."""
    name = op_name(ctx.call)
    if not isinstance(ctx.binding.var.ty, relax.TensorType) or int(np.prod(ctx.out_shape)) > LARGEST:
        return None
    value = _created(ctx, name)
    if value is None:
        operands = [ctx.known(a) for a in ctx.args]
        if not operands or operands[0] is None:
            return None
        value = _computed(ctx, name, operands)
    if value is None:
        return None
    dtype = dtype_of(ctx.binding.var)
    return relax.const(np.broadcast_to(np.asarray(value).astype(dtype), ctx.out_shape).copy(), dtype)


def _created(ctx: Rewrite, name: str) -> np.ndarray | None:
    """Values made from nothing."""
    if name == "relax.arange":
        start, stop, step = (getattr(a.value, "value", a.value) for a in ctx.call.args[:3])
        return np.arange(start, stop, step)
    if name in ("relax.zeros", "relax.zeros_like"):
        return np.zeros(ctx.out_shape)
    if name in ("relax.ones", "relax.ones_like"):
        return np.ones(ctx.out_shape)
    if name in ("relax.full", "relax.full_like"):
        return ctx.known(ctx.call.args[1])
    return None


def _computed(ctx: Rewrite, name: str, operands: list[np.ndarray | None]) -> np.ndarray | None:
    if name in _ELEMENTWISE and all(v is not None for v in operands):
        return np.asarray(_ELEMENTWISE[name](*operands))
    first = operands[0]
    assert first is not None
    if name == "relax.clip":
        low, high = (float(a.value) for a in ctx.call.args[1:])
        return np.minimum(np.maximum(first, low), high)
    if name in ("relax.astype", "relax.broadcast_to"):
        return np.trunc(first) if name == "relax.astype" and "int" in dtype_of(ctx.binding.var) else first
    if name in ("relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"):
        return first.reshape(ctx.out_shape)
    return None
