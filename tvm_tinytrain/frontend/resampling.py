"""Resizing along one axis by tables, where a given scale is not the ratio of the sizes, by which ``relax.image`` resizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tvm import relax

Emit = Callable[[relax.Expr], relax.Expr]


def half_pixel(count: int, step: float) -> np.ndarray:
    """Where each of ``count`` outputs lies in an input of which it takes a ``step``: pixels are squares. In float32, as elsewhere."""
    out = np.arange(count, dtype=np.float32)
    return (out + np.float32(0.5)) * np.float32(step) - np.float32(0.5)


def pick(emit: Emit, x: relax.Expr, axis: int, positions: np.ndarray) -> relax.Expr:
    """The elements at whole ``positions`` along ``axis``; those outside are the ones at the edge."""
    index = np.clip(positions, 0, int(x.ty.shape[axis]) - 1).astype(np.int64)
    return emit(relax.op.take(x, relax.const(index, "int64"), axis))


def interpolate(emit: Emit, x: relax.Expr, axis: int, positions: np.ndarray) -> relax.Expr:
    """The means of the two elements around each of the ``positions`` along ``axis``, weighted by nearness."""
    inside = np.clip(positions, 0, int(x.ty.shape[axis]) - 1)
    low = np.floor(inside)
    shape = [len(low) if i == axis else 1 for i in range(len(x.ty.shape))]
    weight = (inside - low).astype(np.float32).reshape(shape)
    lower, upper = (
        emit(relax.op.multiply(pick(emit, x, axis, index), relax.const(factor, "float32")))
        for index, factor in ((low, 1 - weight), (low + 1, weight))
    )
    return emit(relax.op.add(lower, upper))
