"""Gradients of a convolution with respect to its input and to (selected channels of) its weight."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels import pointwise
from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, make_kernel
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.sinks import Sink, Write


def conv2d_input_grad(spec: Conv2DSpec) -> tirx.PrimFunc:
    """dx = convᵀ(dy, w). Arguments: dy[1, co, oh, ow], w[co, ci/g, kh, kw], dx[1, ci, h, w].

    Stride 1 gathers (each dx element sums over its taps, dy padded); larger strides scatter into a padded dx, which executes
    exactly the multiply-accumulates of the forward pass instead of stride² times as many.
    """
    args = [
        Arg("dy", (1, spec.out_channels, spec.out_height, spec.out_width)),
        Arg("w", spec.weight_shape),
        Arg("dx", (1, spec.in_channels, spec.height, spec.width), role="out"),
    ]
    gather = spec.stride == (1, 1)
    taps = spec.group_outputs * spec.kernel[0] * spec.kernel[1]
    macs = spec.in_channels * spec.height * spec.width * taps if gather else spec.macs
    body = pointwise.input_grad(spec) if spec.pointwise else _gather(spec) if gather else _scatter(spec)
    return make_kernel("conv2d_input_grad", spec, args, body, gather=gather, macs=macs)


def _gather(spec: Conv2DSpec) -> Any:
    reach_h = spec.dilation[0] * (spec.kernel[0] - 1)
    reach_w = spec.dilation[1] * (spec.kernel[1] - 1)
    top, left = reach_h - spec.padding[0], reach_w - spec.padding[1]
    padded_shape = (1, spec.out_channels, spec.height + reach_h, spec.width + reach_w)

    def body(dy: Any, w: Any, dx: Any) -> None:
        padded = dy
        if padded_shape[2:] != (spec.out_height, spec.out_width) or top or left:
            padded = T.sblock_alloc_buffer(padded_shape, "float32")
            with T.grid(*padded_shape) as (n, o, i, j), T.sblock("pad"):
                vn, vo, vi, vj = T.axis.remap("SSSS", [n, o, i, j])
                inside = all_of(vi >= top, vi < top + spec.out_height, vj >= left, vj < left + spec.out_width)
                value = tirx.if_then_else(inside, dy[vn, vo, vi - top, vj - left], f32(0.0))
                T.buffer_store(padded, value, [vn, vo, vi, vj])
        acc = T.sblock_alloc_buffer((1, spec.in_channels, spec.height, spec.width), "float32")
        (dh, dw), per_group, inputs = spec.dilation, spec.group_outputs, spec.group_inputs
        ranges = (1, spec.in_channels, spec.height, spec.width, per_group, *spec.kernel)
        with T.grid(*ranges) as (n, c, i, j, o, kh, kw), T.sblock("conv2d_input_grad"):
            vn, vc, vi, vj, vo, vh, vw = T.axis.remap("SSSSRRR", [n, c, i, j, o, kh, kw])
            if spec.groups == 1:
                out, inner = vo, vc
            elif spec.depthwise:
                out, inner = vc, 0
            else:
                out = tirx.floordiv(vc, inputs) * per_group + vo
                inner = tirx.floormod(vc, inputs)
            with T.init():
                T.buffer_store(acc, f32(0.0), [vn, vc, vi, vj])
            tap = padded[vn, out, vi + reach_h - vh * dh, vj + reach_w - vw * dw] * w[out, inner, vh, vw]
            T.buffer_store(acc, acc[vn, vc, vi, vj] + tap, [vn, vc, vi, vj])
        with T.grid(1, spec.in_channels, spec.height, spec.width) as (n, c, i, j), T.sblock("epilogue"):
            at = T.axis.remap("SSSS", [n, c, i, j])
            T.buffer_store(dx, acc[tuple(at)], list(at))

    return body


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
                if spec.groups == 1:
                    out, inner = vo, vc
                else:
                    out = tirx.floordiv(vc, spec.group_inputs) * spec.group_outputs + vo
                    inner = tirx.floormod(vc, spec.group_inputs)
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


def selected_planes(x: Any, spec: Conv2DSpec, outs: Any, ins: Any, compact: tuple[int, ...]) -> Any:
    """A function (row, column, i, j) → padded input. With padding, block ``pad`` copies the planes that the selection reads,
    addressed by row (depthwise), column (one group) or both, so that a schedule can make the copy plane by plane."""
    if not spec.padded:
        return lambda r, c, i, j: x[0, _input_channel(spec, outs, ins, r, c), i, j]
    rows = compact[0] if spec.groups > 1 else 1
    columns = 1 if spec.depthwise else compact[1]
    shape = (rows, columns, spec.padded_height, spec.padded_width)
    padded = T.sblock_alloc_buffer(shape, "float32")
    top, left = spec.padding[0], spec.padding[1]
    with T.grid(*shape) as (r, c, i, j), T.sblock("pad"):
        vr, vc, vi, vj = T.axis.remap("SSSS", [r, c, i, j])
        inside = all_of(vi >= top, vi < top + spec.height, vj >= left, vj < left + spec.width)
        value = x[0, _input_channel(spec, outs, ins, vr, vc), vi - top, vj - left]
        T.buffer_store(padded, tirx.if_then_else(inside, value, f32(0.0)), [vr, vc, vi, vj])
    return lambda r, c, i, j: padded[r if spec.groups > 1 else 0, 0 if spec.depthwise else c, i, j]


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
    (sh, sw), (dh, dw) = spec.stride, spec.dilation

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
            pointwise.weight_grad(spec, compact, x, dy, row, column, lambda r, c, g: hand_over([r, c, 0, 0], g))
            return
        padded = selected_planes(x, spec, outs, ins, compact)
        grad = T.sblock_alloc_buffer(compact, "float32")
        ranges = (*compact, spec.out_height, spec.out_width)
        with T.grid(*ranges) as (r, c, kh, kw, i, j), T.sblock("conv2d_weight_grad"):
            vr, vc, vh, vw, vi, vj = T.axis.remap("SSSSRR", [r, c, kh, kw, i, j])
            with T.init():
                T.buffer_store(grad, f32(0.0), [vr, vc, vh, vw])
            tap = dy[0, row(vr), vi, vj] * padded(vr, vc, vi * sh + vh * dh, vj * sw + vw * dw)
            T.buffer_store(grad, grad[vr, vc, vh, vw] + tap, [vr, vc, vh, vw])
        with T.grid(*compact) as (r, c, kh, kw), T.sblock("sink"):
            at = T.axis.remap("SSSS", [r, c, kh, kw])
            hand_over(list(at), grad[tuple(at)])

    macs = rows * columns * spec.kernel[0] * spec.kernel[1] * spec.out_height * spec.out_width
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
    )
