"""One bit per element: whether a clamp let it through. What the backward pass of a ReLU needs, at 1/32 of the bytes."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, axes, loops, make_kernel
from tvm_tinytrain.passes.kernels.elementwise import strictly_inside
from tvm_tinytrain.passes.kernels.windows import only_if


def mask_bytes(size: int) -> int:
    """Bytes of the mask of ``size`` elements."""
    return (size + 7) // 8


def pack_mask(size: int, low: float | None, high: float | None) -> tirx.PrimFunc:
    """Bit i & 7 of mask[i >> 3] is low < y[i] < high; bits beyond the end are zero. Arguments: y[size] float32, mask uint8."""
    spec = {"size": size, "low": low, "high": high}

    def body(y: Any, mask: Any) -> None:
        bits = T.sblock_alloc_buffer((1,), "int32", scope="local")
        with loops("i", mask_bytes(size)) as found, T.sblock("pack_mask"):
            (i,) = axes("S", found)
            T.buffer_store(bits, 0, [0])
            for place in range(8):
                index = i * 8 + place
                inside = strictly_inside(y[index], low, high)
                with only_if(True if place == 0 or size % 8 == 0 else index < size):
                    T.buffer_store(bits, tirx.Select(inside, bits[0] | (1 << place), bits[0]), [0])
            T.buffer_store(mask, bits[0].astype("uint8"), [i])

    args = [Arg("y", (size,)), Arg("mask", (mask_bytes(size),), "uint8", role="out")]
    return make_kernel("pack_mask", spec, args, body, macs=0)


def clip_grad_mask(size: int) -> tirx.PrimFunc:
    """dx[i] = dy[i] where bit i of the mask is set, else 0. Arguments: mask[⌈size/8⌉] uint8, dy[size], dx[size] float32."""

    def body(mask: Any, dy: Any, dx: Any) -> None:
        with loops("i", size) as found, T.sblock("clip_grad_mask"):
            (i,) = axes("S", found)
            # signed: of an unsigned 0 − bit TVM concludes that the bit is 0
            all_or_none = 0 - ((mask[i // 8].astype("int32") >> (i % 8)) & 1)
            T.buffer_store(
                dx,
                tirx.reinterpret("float32", tirx.reinterpret("uint32", dy[i]) & all_or_none.astype("uint32")),
                [i],
            )

    args = [Arg("mask", (mask_bytes(size),), "uint8"), Arg("dy", (size,)), Arg("dx", (size,), role="out")]
    return make_kernel("clip_grad_mask", {"size": size}, args, body, macs=0)
