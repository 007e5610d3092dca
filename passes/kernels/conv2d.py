"""Forward convolution with bias and clamp in one kernel."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels import pointwise
from tvm_tinytrain.passes.kernels.builder import Arg, all_of, axes, f32, intermediate, loops, make_kernel
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.windows import axes_of, only_if, or_zero


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


def copies_planes(spec: Conv2DSpec) -> bool:
    """Whether a kernel works on a padded copy of one plane at a time, so that its result may overwrite its operand."""
    return spec.depthwise and spec.stride == (1, 1)


def input_channel(spec: Conv2DSpec, out: Any, inner: Any) -> Any:
    """The input channel that output channel ``out`` meets as the ``inner``-th one of its group."""
    if spec.groups == 1:
        return inner
    if spec.depthwise:
        return out
    group = out if spec.group_outputs == 1 else tirx.floordiv(out, spec.group_outputs)
    return group if spec.group_inputs == 1 else group * spec.group_inputs + inner


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
        rows, columns = axes_of(spec)
        padded = pad_block(x, spec) if copies_planes(spec) else None
        shape = (spec.out_channels, spec.out_height, spec.out_width)
        acc = intermediate("acc", shape)
        with loops("o i j c kh kw", *shape, *spec.weight_shape[1:]) as found, T.sblock("conv2d"):
            o, i, j, c, kh, kw = axes("SSSRRR", found)
            channel = input_channel(spec, o, c)
            with T.init():
                T.buffer_store(acc, start(rest, o), [o, i, j])
            if padded is not None:
                value = (
                    padded[0, channel, i + kh * spec.dilation[0], j + kw * spec.dilation[1]] * w[o, c, kh, kw]
                )
                T.buffer_store(acc, acc[o, i, j] + value, [o, i, j])
            else:
                value = x[0, channel, rows.input(i, kh), columns.input(j, kw)] * w[o, c, kh, kw]
                with only_if(rows.reads_inside(i, kh)):
                    value = or_zero(columns.reads_inside(j, kw), value)
                    T.buffer_store(acc, acc[o, i, j] + value, [o, i, j])
        with loops("o i j", *shape) as found, T.sblock("epilogue"):
            o, i, j = axes("SSS", found)
            T.buffer_store(rest[-1], clamp(acc[o, i, j], low, high), [0, o, i, j])

    if spec.pointwise:
        body = pointwise.forward(spec, start, lambda value: clamp(value, low, high))
    return make_kernel(
        "conv2d", spec, args, body, bias=bias, low=low, high=high, macs=spec.macs, executed=spec.executed_macs
    )
