"""Gradients of a convolution with respect to its input and to (selected channels of) its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels import pointwise
from tvm_tinytrain.passes.kernels.builder import Arg, all_of, axes, f32, intermediate, loops, make_kernel
from tvm_tinytrain.passes.kernels.conv2d import copies_planes
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.sinks import Sink, Write
from tvm_tinytrain.passes.kernels.windows import axes_of, only_if, or_zero


def conv2d_input_grad(spec: Conv2DSpec) -> tirx.PrimFunc:
    """dx = convᵀ(dy, w). Arguments: dy[1, co, oh, ow], w[co, ci/g, kh, kw], dx[1, ci, h, w].

    Each dx element gathers the taps that reach it: with a stride, every stride-th one. Stride and dilation together scatter into a
    padded dx instead. ``macs`` counts taps in the padding as if they were computed, as everywhere; ``executed`` does not.
    """
    args = [
        Arg("dy", (1, spec.out_channels, spec.out_height, spec.out_width)),
        Arg("w", spec.weight_shape),
        Arg("dx", (1, spec.in_channels, spec.height, spec.width), role="out"),
    ]
    gather = all(axis.gathers for axis in axes_of(spec))
    body = pointwise.input_grad(spec) if spec.pointwise else _gather(spec) if gather else _scatter(spec)
    macs, executed = spec.input_grad_macs, spec.executed_input_grad_macs
    return make_kernel("conv2d_input_grad", spec, args, body, gather=gather, macs=macs, executed=executed)


def _gather(spec: Conv2DSpec) -> Any:
    rows, columns = axes_of(spec)
    shape = (spec.in_channels, spec.height, spec.width)

    def body(dy: Any, w: Any, dx: Any) -> None:
        padded = _padded_output_grad(dy, spec) if copies_planes(spec) else None
        acc = intermediate("acc", shape)
        ranges = (*shape, spec.group_outputs, rows.steps, columns.steps)
        with loops("c i j o kh kw", *ranges) as found, T.sblock("conv2d_input_grad"):
            c, i, j, o, sh, sw = axes("SSSRRR", found)
            out, inner = _output_channel(spec, c, o)
            kh, kw = rows.tap(i, sh), columns.tap(j, sw)
            with T.init():
                T.buffer_store(acc, f32(0.0), [c, i, j])
            if padded is not None:
                reach = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
                at = [i + reach[0] - kh * spec.dilation[0], j + reach[1] - kw * spec.dilation[1]]
                T.buffer_store(acc, acc[c, i, j] + padded[0, out, *at] * w[out, inner, kh, kw], [c, i, j])
            else:
                value = dy[0, out, rows.output(i, sh), columns.output(j, sw)] * w[out, inner, kh, kw]
                with only_if(rows.writes_inside(i, sh)):
                    value = or_zero(columns.writes_inside(j, sw), value)
                    T.buffer_store(acc, acc[c, i, j] + value, [c, i, j])
        with loops("c i j", *shape) as found, T.sblock("epilogue"):
            c, i, j = axes("SSS", found)
            T.buffer_store(dx, acc[c, i, j], [0, c, i, j])

    return body


def _padded_output_grad(dy: Any, spec: Conv2DSpec) -> Any:
    """Emits block ``pad``: a copy of dy with zeros around it, so that every tap of every dx element of stride one is in it."""
    reach = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    top, left = reach[0] - spec.padding[0], reach[1] - spec.padding[1]
    shape = (1, spec.out_channels, spec.height + reach[0], spec.width + reach[1])
    padded = intermediate("padded", shape)
    with loops("n o i j", *shape) as found, T.sblock("pad"):
        n, o, i, j = axes("SSSS", found)
        inside = all_of(i >= top, i < top + spec.out_height, j >= left, j < left + spec.out_width)
        T.buffer_store(padded, or_zero(inside, dy[n, o, i - top, j - left]), [n, o, i, j])
    return padded


def _output_channel(spec: Conv2DSpec, channel: Any, inner: Any) -> tuple[Any, Any]:
    """The ``inner``-th output channel that reads input channel ``channel``, and the place of ``channel`` among its inputs."""
    if spec.groups == 1:
        return inner, channel
    if spec.depthwise:
        return channel, 0
    group = tirx.floordiv(channel, spec.group_inputs)
    return group * spec.group_outputs + inner, tirx.floormod(channel, spec.group_inputs)


def _scatter(spec: Conv2DSpec) -> Any:
    (sh, sw), (dh, dw) = spec.stride, spec.dilation
    shape = (spec.in_channels, spec.padded_height, spec.padded_width)

    def body(dy: Any, w: Any, dx: Any) -> None:
        padded = T.sblock_alloc_buffer(shape, "float32")
        with T.serial(spec.in_channels) as c:
            with T.grid(*shape[1:]) as (i, j), T.sblock("zero"):
                vc, vi, vj = T.axis.remap("SSS", [c, i, j])
                T.buffer_store(padded, f32(0.0), [vc, vi, vj])
            ranges = (spec.group_outputs, *spec.kernel, spec.out_height, spec.out_width)
            with T.grid(*ranges) as (o, kh, kw, i, j), T.sblock("conv2d_input_grad"):
                vc, vo, vh, vw, vi, vj = T.axis.remap("SRRRRR", [c, o, kh, kw, i, j])
                out, inner = _output_channel(spec, vc, vo)
                at = [vc, vi * sh + vh * dh, vj * sw + vw * dw]
                T.buffer_store(padded, padded[tuple(at)] + dy[0, out, vi, vj] * w[out, inner, vh, vw], at)
            with T.grid(spec.height, spec.width) as (i, j), T.sblock("crop"):
                vc, vi, vj = T.axis.remap("SSS", [c, i, j])
                T.buffer_store(dx, padded[vc, vi + spec.padding[0], vj + spec.padding[1]], [0, vc, vi, vj])

    return body


def _input_channel(spec: Conv2DSpec, outs: Any, ins: Any, row: Any, column: Any) -> Any:
    """The input channel that meets row ``row`` and column ``column`` of the selected gradient."""
    inner = column if ins is None else ins[column]
    if spec.groups == 1:
        return inner
    out = row if outs is None else outs[row]
    return out if spec.depthwise else tirx.floordiv(out, spec.group_outputs) * spec.group_inputs + inner


def weight_grad_sums(
    spec: Conv2DSpec,
    acc: Any,
    x: Any,
    dy: Any,
    found: Sequence[Any],
    outs: Any = None,
    ins: Any = None,
    row: Any = None,
) -> None:
    """Emits block ``conv2d_weight_grad``, the gradient's sums, in loops ``found`` over row, column, taps and pixels.

    ``acc`` has the axes row, column and taps. With ``row``, a variable outside of the block, neither it nor ``found`` has rows.
    """
    rows, columns = axes_of(spec)
    with T.sblock("conv2d_weight_grad"):
        *at, i, j = axes("SSSSRR" if row is None else "SSSRR", found)
        r, c, kh, kw = at if row is None else [row, *at]
        with T.init():
            T.buffer_store(acc, f32(0.0), at)
        channel = _input_channel(spec, outs, ins, r, c)
        out = r if outs is None else outs[r]
        value = dy[0, out, i, j] * x[0, channel, rows.input(i, kh), columns.input(j, kw)]
        with only_if(rows.reads_inside(i, kh)):
            value = or_zero(columns.reads_inside(j, kw), value)
            T.buffer_store(acc, acc[tuple(at)] + value, at)


def conv2d_weight_grad(
    spec: Conv2DSpec,
    sink: Sink | None = None,
    *,
    channels: int | None = None,
    inputs: int | None = None,
    compact_weight: bool = False,
    plain: bool = False,
) -> tirx.PrimFunc:
    """∂L/∂w of the selected output (and input) channels, handed to ``sink``.

    Arguments: x[1, ci, h, w], dy[1, co, oh, ow], (channels[k] int32: the selected output channels), (inputs[m] int32: the
    selected input channels within a group), then the sink's. ``channels``/``inputs`` are k and m; None selects all and
    drops the argument. The gradient has shape [k, m, kh, kw]. With ``compact_weight`` the weight that an updating sink changes
    has that shape too (the trained rows only), else the layer's full shape. ``plain`` keeps rows and pixels apart even where the
    convolution is a matrix product, for schedules that must not tile the rows.
    """
    sink = sink or Write()
    rows = spec.out_channels if channels is None else channels
    columns = spec.group_inputs if inputs is None else inputs
    compact = (rows, columns, *spec.kernel)
    args = [
        Arg("x", (1, spec.in_channels, spec.height, spec.width)),
        Arg("dy", (1, spec.out_channels, spec.out_height, spec.out_width)),
    ]
    if channels is not None:
        args.append(Arg("channels", (rows,), "int32"))
    if inputs is not None:
        args.append(Arg("inputs", (columns,), "int32"))
    own = len(args)
    args += sink.args(compact, compact if compact_weight else spec.weight_shape)

    def body(*bufs: Any) -> None:
        x, dy = bufs[0], bufs[1]
        lists = list(bufs[2:own])
        outs = lists.pop(0) if channels is not None else None
        ins = lists.pop(0) if inputs is not None else None

        def row(r: Any) -> Any:
            return r if outs is None else outs[r]

        def column(c: Any) -> Any:
            return c if ins is None else ins[c]

        def hand_over(at: list[Any], value: Any) -> None:
            where = at if compact_weight else [row(at[0]), column(at[1]), *at[2:]]
            sink.emit(bufs[own:], at, where, value)

        if spec.pointwise and not plain:
            pointwise.weight_grad(
                spec, compact, x, dy, row, column, lambda r, c, g: hand_over([r, c, 0, 0], g)
            )
            return
        acc = intermediate("acc", compact)
        with loops("r c kh kw i j", *compact, spec.out_height, spec.out_width) as found:
            weight_grad_sums(spec, acc, x, dy, found, outs, ins)
        with loops("r c kh kw", *compact) as found, T.sblock("sink"):
            at = axes("SSSS", found)
            hand_over(at, acc[tuple(at)])

    macs = rows * columns * spec.kernel[0] * spec.kernel[1] * spec.out_height * spec.out_width
    executed = rows * columns * spec.taps_inside
    described = asdict(spec)
    return make_kernel(
        "conv2d_weight_grad",
        described,
        args,
        body,
        sink=sink.kind,
        update=asdict(sink),
        channels=channels,
        inputs=inputs,
        compact_weight=compact_weight,
        macs=macs,
        executed=executed,
    )
