"""One bit per element: whether a clamp let it through. What the backward pass of a ReLU needs, at 1/32 of the bytes."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, axes, f32, loops, make_kernel


def mask_bytes(size: int) -> int:
    """Bytes of the mask of ``size`` elements."""
    return (size + 7) // 8


def pack_mask(size: int, low: float | None, high: float | None) -> tirx.PrimFunc:
    """Bit i & 7 of mask[i >> 3] is low < y[i] < high; bits beyond the end are zero. Arguments: y[size] float32, mask uint8."""
    spec = {"size": size, "low": low, "high": high}

    def bit(y: Any, index: Any, place: int, last: bool) -> Any:
        inside = all_of(
            True if low is None else y[index] > f32(low), True if high is None else y[index] < f32(high)
        )
        value = tirx.Select(inside, tirx.const(1 << place, "int32"), tirx.const(0, "int32"))
        return tirx.if_then_else(index < size, value, tirx.const(0, "int32")) if last else value

    def body(y: Any, mask: Any) -> None:
        with loops("i", mask_bytes(size)) as found, T.sblock("pack_mask"):
            (i,) = axes("S", found)
            total = bit(y, i * 8, 0, False)
            for place in range(1, 8):
                total = total + bit(y, i * 8 + place, place, size % 8 != 0)
            T.buffer_store(mask, total.astype("uint8"), [i])

    args = [Arg("y", (size,)), Arg("mask", (mask_bytes(size),), "uint8", role="out")]
    return make_kernel("pack_mask", spec, args, body, macs=0)


def clip_grad_mask(size: int) -> tirx.PrimFunc:
    """dx[i] = dy[i] where bit i of the mask is set, else 0. Arguments: mask[⌈size/8⌉] uint8, dy[size], dx[size] float32."""

    def body(mask: Any, dy: Any, dx: Any) -> None:
        with loops("i", size) as found, T.sblock("clip_grad_mask"):
            (i,) = axes("S", found)
            byte = mask[i >> 3].astype("int32")
            kept = ((byte >> (i & 7)) & 1) != 0
            T.buffer_store(dx, tirx.Select(kept, dy[i], f32(0.0)), [i])

    args = [Arg("mask", (mask_bytes(size),), "uint8"), Arg("dy", (size,)), Arg("dx", (size,), role="out")]
    return make_kernel("clip_grad_mask", {"size": size}, args, body, macs=0)
