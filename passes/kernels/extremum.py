"""Gradient of the larger (or smaller) of two tensors that broadcast against each other."""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel, remap_all


def extremum_grad(
    shape: tuple[int, ...], mine: tuple[int, ...], other: tuple[int, ...], *, largest: bool
) -> tirx.PrimFunc:
    """g = dy where this operand won, dy/2 where both are equal (as torch), else 0.

    Arguments: a of shape ``mine``, b of shape ``other``, dy, g, both of the broadcast ``shape``.
    """

    def broadcast(at: list[Any], own: tuple[int, ...]) -> tuple[Any, ...]:
        return tuple(0 if d == 1 else v for v, d in zip(at[len(at) - len(own) :], own, strict=True))

    def body(a: Any, b: Any, dy: Any, g: Any) -> None:
        with T.grid(*shape) as loops, T.sblock("extremum_grad"):
            at = remap_all(loops, len(shape))
            left, right, value = a[broadcast(at, mine)], b[broadcast(at, other)], dy[tuple(at)]
            wins = left > right if largest else left < right
            shared = tirx.Select(left == right, value * f32(0.5), f32(0.0))
            T.buffer_store(g, tirx.Select(wins, value, shared), at)

    args = [Arg("a", mine), Arg("b", other), Arg("dy", shape), Arg("g", shape, role="out")]
    return make_kernel("extremum_grad", {"size": math.prod(shape), "largest": largest}, args, body, macs=0)
