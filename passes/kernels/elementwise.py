"""Elementwise gradient kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, make_kernel, remap_all


def strictly_inside(value: Any, low: float | None, high: float | None) -> Any:
    """low < value < high for the output of a clamp to [low, high]; None: no such bound.

    With low = 0 integers are compared, because floats that are not negative are ordered as their bits are: C compilers make one
    comparison of it.
    """
    if low != 0.0 or (high is not None and high <= 0.0):
        return all_of(True if low is None else value > f32(low), True if high is None else value < f32(high))
    bits = tirx.reinterpret("int32", value)
    top = int(np.float32(np.inf if high is None else high).view(np.int32)) + (high is None)
    return all_of(bits > 0, bits < top)


def clip_grad(shape: tuple[int, ...], low: float | None, high: float | None) -> tirx.PrimFunc:
    """dx = dy where low < y < high, else 0, from the clamped *output* y (as torch: zero at the bounds).

    Arguments: y, dy, dx, all float32 of ``shape``.
    """

    def body(y: Any, dy: Any, dx: Any) -> None:
        with T.grid(*shape or (1,)) as loops, T.sblock("clip_grad"):  # a number has no axis to loop over
            at = remap_all(loops, len(shape) or 1)[: len(shape)]
            inside = strictly_inside(y[tuple(at)], low, high)
            T.buffer_store(dx, tirx.Select(inside, dy[tuple(at)], f32(0.0)), at)

    args = [Arg("y", shape), Arg("dy", shape), Arg("dx", shape, role="out")]
    spec = {"size": math.prod(shape), "low": low, "high": high}
    return make_kernel("clip_grad", spec, args, body, macs=0)
