"""Forward convolution with bias and clamp in one kernel."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels import pointwise
from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, intermediate, make_kernel
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec


def pad_block(x: Any, spec: Conv2DSpec) -> Any:
    """Emits block ``pad`` (a zero-padded copy of x[1, c, h, w]) where the convolution has padding; returns what to read."""
    if not spec.padded:
        return x
    top, left, _, _ = spec.padding
    shape = (1, spec.in_channels, spec.padded_height, spec.padded_width)
    padded = intermediate("padded", shape)
    with T.grid(*shape) as (n, c, y, z), T.sblock("pad"):
        vn, vc, vy, vz = T.axis.remap("SSSS", [n, c, y, z])
        inside = all_of(
            True if spec.padding[0] == 0 else vy >= top,
            True if spec.padding[2] == 0 else vy < top + spec.height,
            True if spec.padding[1] == 0 else vz >= left,
            True if spec.padding[3] == 0 else vz < left + spec.width,
        )
        value = tirx.if_then_else(inside, x[vn, vc, vy - top, vz - left], f32(0.0))
        T.buffer_store(padded, value, [vn, vc, vy, vz])
    return padded


def clamp(value: Any, low: float | None, high: float | None) -> Any:
    """min(max(value, low), high) with either bound left out where it is None."""
    if low is not None:
        value = tirx.max(value, f32(low))
    if high is not None:
        value = tirx.min(value, f32(high))
    return value


def conv2d(
    spec: Conv2DSpec, *, bias: bool = False, low: float | None = None, high: float | None = None
) -> tirx.PrimFunc:
    """y = clamp(conv(x, w) + b, low, high).

    Arguments: x[1, ci, h, w], weight[co, ci/g, kh, kw], (b[co] if ``bias``), y[1, co, oh, ow], all float32.
    """
    out_shape = (1, spec.out_channels, spec.out_height, spec.out_width)
    args = [Arg("x", (1, spec.in_channels, spec.height, spec.width)), Arg("w", spec.weight_shape)]
    if bias:
        args.append(Arg("b", (spec.out_channels,)))
    args.append(Arg("y", out_shape, role="out"))

    def start(rest: Any, channel: Any) -> Any:
        return rest[0][channel] if bias else f32(0.0)

    def body(x: Any, w: Any, *rest: Any) -> None:
        y = rest[-1]
        padded = pad_block(x, spec)
        acc = intermediate("acc", out_shape)
        (sh, sw), (dh, dw) = spec.stride, spec.dilation
        with (
            T.grid(*out_shape, spec.group_inputs, *spec.kernel) as (n, o, i, j, c, kh, kw),
            T.sblock("conv2d"),
        ):
            vn, vo, vi, vj, vc, vh, vw = T.axis.remap("SSSSRRR", [n, o, i, j, c, kh, kw])
            if spec.groups == 1:
                channel = vc
            elif spec.group_inputs == 1:
                channel = vo if spec.group_outputs == 1 else tirx.floordiv(vo, spec.group_outputs)
            else:
                channel = tirx.floordiv(vo, spec.group_outputs) * spec.group_inputs + vc
            with T.init():
                T.buffer_store(acc, start(rest, vo), [vn, vo, vi, vj])
            product = padded[vn, channel, vi * sh + vh * dh, vj * sw + vw * dw] * w[vo, vc, vh, vw]
            T.buffer_store(acc, acc[vn, vo, vi, vj] + product, [vn, vo, vi, vj])
        with T.grid(*out_shape) as (n, o, i, j), T.sblock("epilogue"):
            vn, vo, vi, vj = T.axis.remap("SSSS", [n, o, i, j])
            T.buffer_store(y, clamp(acc[vn, vo, vi, vj], low, high), [vn, vo, vi, vj])

    if spec.pointwise:
        body = pointwise.forward(spec, start, lambda value: clamp(value, low, high))
    return make_kernel("conv2d", spec, args, body, bias=bias, low=low, high=high, macs=spec.macs)
