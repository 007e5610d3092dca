"""The input's gradient for listed channels only: all that a layer trained in part asks of the layer behind it.

A weight gradient reads the adjoint of its layer's output at the trained channels. Where nothing in front of that layer is trained, no
other channel of the adjoint is read, and the kernel that makes it need not compute it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, axes, f32, intermediate, loops, make_kernel
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.pointwise import pixel
from tvm_tinytrain.passes.kernels.windows import axes_of, only_if, or_zero

LISTED = "conv2d_input_grad_listed"


def has_listed_form(spec: Conv2DSpec) -> bool:
    """Whether there is a kernel for listed channels: plain and depthwise convolutions whose input gradient gathers."""
    return (spec.groups == 1 or spec.depthwise) and all(axis.gathers for axis in axes_of(spec))


def conv2d_input_grad_listed(spec: Conv2DSpec, rows: int) -> tirx.PrimFunc:
    """dx[channels] = convᵀ(dy, w)[channels], in place; all other channels of dx stay.

    Arguments: dy[1, co, oh, ow], w[co, ci/g, kh, kw], channels[rows] int32 (input channels), dx[1, ci, h, w].
    """
    args = [
        Arg("dy", (1, spec.out_channels, spec.out_height, spec.out_width)),
        Arg("w", spec.weight_shape),
        Arg("channels", (rows,), "int32"),
        Arg("dx", (1, spec.in_channels, spec.height, spec.width), role="inout"),
    ]
    body = _pointwise(spec, rows) if spec.pointwise else _gathered(spec, rows)
    macs = rows * (spec.input_grad_macs // spec.in_channels)
    executed = rows * (spec.executed_input_grad_macs // spec.in_channels)
    return make_kernel(LISTED, spec, args, body, rows=rows, macs=macs, executed=executed)


def _pointwise(spec: Conv2DSpec, rows: int) -> Any:
    pixels = spec.height * spec.width

    def body(dy: Any, w: Any, channels: Any, dx: Any) -> None:
        acc = intermediate("acc", (rows, pixels))
        with loops("k p o", rows, pixels, spec.out_channels) as found, T.sblock(LISTED):
            k, p, o = axes("SSR", found)
            with T.init():
                T.buffer_store(acc, f32(0.0), [k, p])
            T.buffer_store(acc, acc[k, p] + dy[0, o, *pixel(spec, p)] * w[o, channels[k], 0, 0], [k, p])
        with loops("k p", rows, pixels) as found, T.sblock("epilogue"):
            k, p = axes("SS", found)
            T.buffer_store(dx, acc[k, p], [0, channels[k], *pixel(spec, p)])

    return body


def _gathered(spec: Conv2DSpec, rows: int) -> Any:
    vertical, horizontal = axes_of(spec)
    shape = (rows, spec.height, spec.width)
    summed = 1 if spec.depthwise else spec.out_channels

    def body(dy: Any, w: Any, channels: Any, dx: Any) -> None:
        acc = intermediate("acc", shape)
        ranges = (*shape, summed, vertical.steps, horizontal.steps)
        with loops("k i j o kh kw", *ranges) as found, T.sblock(LISTED):
            k, i, j, o, sh, sw = axes("SSSRRR", found)
            with T.init():
                T.buffer_store(acc, f32(0.0), [k, i, j])
            out, inner = (channels[k], 0) if spec.depthwise else (o, channels[k])
            weight = w[out, inner, vertical.tap(i, sh), horizontal.tap(j, sw)]
            value = dy[0, out, vertical.output(i, sh), horizontal.output(j, sw)] * weight
            with only_if(vertical.writes_inside(i, sh)):
                value = or_zero(horizontal.writes_inside(j, sw), value)
                T.buffer_store(acc, acc[k, i, j] + value, [k, i, j])
        with loops("k i j", *shape) as found, T.sblock("epilogue"):
            k, i, j = axes("SSS", found)
            T.buffer_store(dx, acc[k, i, j], [0, channels[k], i, j])

    return body
