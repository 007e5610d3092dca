"""Values that are known at compile time: index arithmetic that front ends write as tensor operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.canonical.registry import Rewrite
from tvm_tinytrain.passes.liveness import is_view
from tvm_tinytrain.passes.rewriting import dtype_of, op_name, operands, shape_of, slice_range

LARGEST = 4096
"""Elements; a larger float constant stays an operator rather than filling flash, unless it comes from one as large."""

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "relax.add": np.add, "relax.subtract": np.subtract, "relax.multiply": np.multiply, "relax.divide": np.divide,
    "relax.floor_divide": np.floor_divide, "relax.mod": np.fmod, "relax.floor_mod": np.mod, "relax.abs": np.abs,
    "relax.negative": np.negative, "relax.maximum": np.maximum, "relax.minimum": np.minimum, "relax.floor": np.floor,
    "relax.ceil": np.ceil, "relax.power": np.power, "relax.sqrt": np.sqrt, "relax.where": np.where,
    "relax.greater": np.greater, "relax.greater_equal": np.greater_equal, "relax.less": np.less,
    "relax.less_equal": np.less_equal, "relax.equal": np.equal, "relax.not_equal": np.not_equal,
    "relax.logical_and": np.logical_and, "relax.logical_or": np.logical_or, "relax.logical_xor": np.logical_xor,
    "relax.logical_not": np.logical_not, "relax.bitwise_and": np.bitwise_and, "relax.bitwise_or": np.bitwise_or,
    "relax.bitwise_xor": np.bitwise_xor, "relax.bitwise_not": np.bitwise_not, "relax.isinf": np.isinf,
}  # fmt: skip
_MOVES = (
    "relax.clip", "relax.tril", "relax.triu", "relax.strided_slice", "relax.permute_dims", "relax.broadcast_to", "relax.astype",
)  # fmt: skip


def evaluate(ctx: Rewrite) -> relax.Expr | None:
    """The result as a constant, or None where an operand is unknown or the operator is not one of those below."""
    if not isinstance(ctx.binding.var.ty, relax.TensorType):
        return None
    sizes = [LARGEST, *(v.size for a in ctx.args if (v := ctx.known(a)) is not None)]
    if dtype_of(ctx.binding.var) == "float32" and math.prod(ctx.out_shape) > max(sizes):
        return None
    value = compute(ctx.call, ctx.binding.var, ctx.known)
    return None if value is None else relax.const(value, dtype_of(ctx.binding.var))


def compute(
    call: relax.Call, result: relax.Var, known: Callable[[relax.Expr], np.ndarray | None]
) -> np.ndarray | None:
    """The value of a call whose ``result`` has its shape and element type, from the ``known`` values of its operands."""
    name, shape, dtype = op_name(call), shape_of(result), dtype_of(result)
    value = _created(call, name, shape, known)
    if value is None and name in _ELEMENTWISE:
        values = _all_known(operands(call), known)
        value = None if values is None else np.asarray(_ELEMENTWISE[name](*values))
    elif value is None and name == "relax.take" and call.attrs.axis is not None:
        values = _all_known(operands(call), known)
        if values is not None:
            axis = int(call.attrs.axis)
            value = np.take(values[0], taken(call, values[1], values[0].shape[axis]), axis)
    elif value is None and (name in _MOVES or is_view(call)) and (first := known(call.args[0])) is not None:
        value = (
            np.trunc(first) if name == "relax.astype" and "int" in dtype else _moved(call, name, shape, first)
        )
    return None if value is None else np.broadcast_to(np.asarray(value).astype(dtype), shape).copy()


def taken(call: relax.Call, index: np.ndarray, size: int) -> np.ndarray:
    """Where each known ``index`` of a ``take`` from ``size`` elements points: negative ones count from the end."""
    mode = str(call.attrs.mode)
    if mode == "wrap":
        return index % size
    if mode == "clip":
        return np.clip(index, 0, size - 1)
    outside = index[(index < -size) | (index >= size)]
    if outside.size:
        raise UnsupportedOperatorError(
            "canonicalize",
            "relax.take",
            f"index {outside[0]} of {size} elements, mode {mode}",
            f"{-size} to {size - 1}, or the modes wrap and clip",
            "correct the index",
        )
    return np.where(index < 0, index + size, index)


def _all_known(
    exprs: list[relax.Expr], known: Callable[[relax.Expr], np.ndarray | None]
) -> list[np.ndarray] | None:
    """The values of all of them; none is looked for behind the first that is unknown."""
    values = []
    for expr in exprs:
        value = known(expr)
        if value is None:
            return None
        values.append(value)
    return values


def _created(
    call: relax.Call, name: str, shape: tuple[int, ...], known: Callable[[relax.Expr], np.ndarray | None]
) -> np.ndarray | None:
    """Values made from nothing."""
    if name == "relax.arange":
        start, stop, step = (getattr(a.value, "value", a.value) for a in call.args[:3])
        return np.arange(start, stop, step)
    if name in ("relax.zeros", "relax.zeros_like"):
        return np.zeros(shape)
    if name in ("relax.ones", "relax.ones_like"):
        return np.ones(shape)
    if name in ("relax.full", "relax.full_like"):
        return known(call.args[1])
    return None


def _moved(call: relax.Call, name: str, shape: tuple[int, ...], first: np.ndarray) -> np.ndarray:
    """Parts and other arrangements of one value; itself where it is broadcast or cast."""
    if name == "relax.clip":
        low, high = (float(a.value) for a in call.args[1:])
        return np.minimum(np.maximum(first, low), high)
    if name in ("relax.tril", "relax.triu"):
        keep = np.tril if name == "relax.tril" else np.triu
        return np.asarray(keep(first, int(call.args[1].value)))
    if name == "relax.strided_slice":
        ranges = zip(*slice_range(call), shape, strict=True)
        return first[np.ix_(*(begin + step * np.arange(count) for begin, step, count in ranges))]
    if name == "relax.permute_dims":
        return np.transpose(first, None if call.attrs.axes is None else [int(a) for a in call.attrs.axes])
    return first.reshape(shape) if is_view(call) else first
