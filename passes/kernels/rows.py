"""Kernels over the trained rows of a layer whose other rows stay in flash.

A layer of which only some output channels are trained keeps its whole weight in flash and the trained rows, compact, in RAM. Its
forward kernel runs over the flash weight as ever; then the kernels here compute the trained channels again from the RAM rows. That
costs the selected channels' multiply-accumulates once more, and saves the RAM of all other rows and a pointer per row.

Every kernel takes ``channels[k]`` int32, the output channels that the k rows belong to.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, axes, f32, intermediate, loops, make_kernel
from tvm_tinytrain.passes.kernels.conv2d import clamp, input_channel
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec
from tvm_tinytrain.passes.kernels.pointwise import pixel
from tvm_tinytrain.passes.kernels.windows import axes_of, only_if, or_zero


def conv2d_rows(
    spec: Conv2DSpec, rows: int, *, bias: str | None, low: float | None = None, high: float | None = None
) -> tirx.PrimFunc:
    """y[channels] = clamp(conv(x, w_rows) + b), in place; all other channels of y stay.

    Arguments: x[1, ci, h, w], w_rows[rows, ci/g, kh, kw], (b), channels[rows], y[1, co, oh, ow]. ``bias`` is "rows" (b[rows]),
    "full" (b[co]) or None.
    """
    compact = (rows, spec.group_inputs, *spec.kernel)
    args = [Arg("x", (1, spec.in_channels, spec.height, spec.width)), Arg("w", compact)]
    if bias is not None:
        args.append(Arg("b", (rows if bias == "rows" else spec.out_channels,)))
    args += [
        Arg("channels", (rows,), "int32"),
        Arg("y", (1, spec.out_channels, spec.out_height, spec.out_width), role="inout"),
    ]

    def body(x: Any, w: Any, *rest: Any) -> None:
        channels, y = rest[-2], rest[-1]

        def start(r: Any) -> Any:
            return f32(0.0) if bias is None else rest[0][r if bias == "rows" else channels[r]]

        if spec.pointwise:
            pixels = spec.height * spec.width
            acc = intermediate("acc", (rows, pixels))
            with loops("r p c", rows, pixels, spec.in_channels) as found, T.sblock("conv2d_rows"):
                r, p, c = axes("SSR", found)
                with T.init():
                    T.buffer_store(acc, start(r), [r, p])
                T.buffer_store(acc, acc[r, p] + x[0, c, *pixel(spec, p)] * w[r, c, 0, 0], [r, p])
            with loops("r p", rows, pixels) as found, T.sblock("epilogue"):
                r, p = axes("SS", found)
                T.buffer_store(y, clamp(acc[r, p], low, high), [0, channels[r], *pixel(spec, p)])
            return
        vertical, horizontal = axes_of(spec)
        shape = (rows, spec.out_height, spec.out_width)
        acc = intermediate("acc", shape)
        with loops("r i j c kh kw", *shape, *compact[1:]) as found, T.sblock("conv2d_rows"):
            r, i, j, c, kh, kw = axes("SSSRRR", found)
            with T.init():
                T.buffer_store(acc, start(r), [r, i, j])
            channel = input_channel(spec, channels[r], c)
            value = x[0, channel, vertical.input(i, kh), horizontal.input(j, kw)] * w[r, c, kh, kw]
            with only_if(vertical.reads_inside(i, kh)):
                value = or_zero(horizontal.reads_inside(j, kw), value)
                T.buffer_store(acc, acc[r, i, j] + value, [r, i, j])
        with loops("r i j", *shape) as found, T.sblock("epilogue"):
            r, i, j = axes("SSS", found)
            T.buffer_store(y, clamp(acc[r, i, j], low, high), [0, channels[r], i, j])

    macs = rows * (spec.macs // spec.out_channels)
    executed = rows * spec.group_inputs * spec.taps_inside
    return make_kernel(
        "conv2d_rows",
        spec,
        args,
        body,
        rows=rows,
        bias=bias,
        low=low,
        high=high,
        macs=macs,
        executed=executed,
    )


def linear_rows(
    spec: LinearSpec, rows: int, *, bias: str | None, low: float | None = None, high: float | None = None
) -> tirx.PrimFunc:
    """y[:, channels] = clamp(x · w_rowsᵀ + b), in place.

    Arguments: x[n, in], w_rows[rows, in], (b as in `conv2d_rows`), channels[rows], y[n, out].
    """
    args = [Arg("x", (spec.rows, spec.in_features)), Arg("w", (rows, spec.in_features))]
    if bias is not None:
        args.append(Arg("b", (rows if bias == "rows" else spec.out_features,)))
    args += [Arg("channels", (rows,), "int32"), Arg("y", (spec.rows, spec.out_features), role="inout")]

    def body(x: Any, w: Any, *rest: Any) -> None:
        channels, y = rest[-2], rest[-1]
        acc = T.sblock_alloc_buffer((rows, spec.rows), "float32")
        with T.grid(rows, spec.rows, spec.in_features) as (r, n, k), T.sblock("linear_rows"):
            vr, vn, vk = T.axis.remap("SSR", [r, n, k])
            with T.init():
                T.buffer_store(acc, f32(0.0), [vr, vn])
            T.buffer_store(acc, acc[vr, vn] + x[vn, vk] * w[vr, vk], [vr, vn])
        with T.grid(rows, spec.rows) as (r, n), T.sblock("epilogue"):
            vr, vn = T.axis.remap("SS", [r, n])
            value = acc[vr, vn]
            if bias is not None:
                value = value + rest[0][vr if bias == "rows" else channels[vr]]
            T.buffer_store(y, clamp(value, low, high), [vn, channels[vr]])

    macs = rows * spec.rows * spec.in_features
    return make_kernel(
        "linear_rows", spec, args, body, rows_trained=rows, bias=bias, low=low, high=high, macs=macs
    )


def conv2d_input_grad_rows(spec: Conv2DSpec, rows: int) -> tirx.PrimFunc:
    """Corrects dx, made from the flash weight, for the trained rows, in place.

    A depthwise channel's dx depends on its own row only and is computed again; else dx += convᵀ(dy[channels], w_rows − w[channels]).
    Arguments: dy[1, co, oh, ow], w[co, ci/g, kh, kw] (flash), w_rows[rows, ci/g, kh, kw], channels[rows], dx[1, ci, h, w].
    """
    args = [
        Arg("dy", (1, spec.out_channels, spec.out_height, spec.out_width)),
        Arg("w", spec.weight_shape),
        Arg("w_rows", (rows, spec.group_inputs, *spec.kernel)),
        Arg("channels", (rows,), "int32"),
        Arg("dx", (1, spec.in_channels, spec.height, spec.width), role="inout"),
    ]
    gathers = all(axis.gathers for axis in axes_of(spec))
    if spec.pointwise:
        body = _pointwise_dx(spec, rows)
    elif spec.depthwise and not gathers:
        body = _scattered_dx(spec, rows)
    else:
        body = _gathered_dx(spec, rows)
    macs = rows * (spec.macs // spec.out_channels)
    executed = macs if spec.scatters else rows * spec.group_inputs * spec.taps_inside
    return make_kernel("conv2d_input_grad_rows", spec, args, body, rows=rows, macs=macs, executed=executed)


def _pointwise_dx(spec: Conv2DSpec, rows: int) -> Any:
    pixels = spec.height * spec.width

    def body(dy: Any, w: Any, w_rows: Any, channels: Any, dx: Any) -> None:
        acc = intermediate("acc", (spec.in_channels, pixels))
        with loops("c p r", spec.in_channels, pixels, rows) as found, T.sblock("conv2d_input_grad_rows"):
            c, p, r = axes("SSR", found)
            with T.init():
                T.buffer_store(acc, f32(0.0), [c, p])
            delta = w_rows[r, c, 0, 0] - w[channels[r], c, 0, 0]
            T.buffer_store(acc, acc[c, p] + dy[0, channels[r], *pixel(spec, p)] * delta, [c, p])
        with loops("c p", spec.in_channels, pixels) as found, T.sblock("epilogue"):
            c, p = axes("SS", found)
            at = [0, c, *pixel(spec, p)]
            T.buffer_store(dx, dx[tuple(at)] + acc[c, p], at)

    return body


def _gathered_dx(spec: Conv2DSpec, rows: int) -> Any:
    """Depthwise: the trained channels' dx anew, a sum over taps. Else a sum over the trained rows and taps, added to dx."""
    vertical, horizontal = axes_of(spec)

    def body(dy: Any, w: Any, w_rows: Any, channels: Any, dx: Any) -> None:
        count, summed = (rows, 1) if spec.depthwise else (spec.in_channels, rows)
        shape = (count, spec.height, spec.width)
        acc = intermediate("acc", shape)
        ranges = (*shape, summed, vertical.steps, horizontal.steps)
        with loops("c i j r kh kw", *ranges) as found, T.sblock("conv2d_input_grad_rows"):
            c, i, j, r, sh, sw = axes("SSSRRR", found)
            with T.init():
                T.buffer_store(acc, f32(0.0), [c, i, j])
            kh, kw = vertical.tap(i, sh), horizontal.tap(j, sw)
            if spec.depthwise:
                out, weight = channels[c], w_rows[c, r, kh, kw]
            else:
                out, weight = channels[r], w_rows[r, c, kh, kw] - w[channels[r], c, kh, kw]
            value = dy[0, out, vertical.output(i, sh), horizontal.output(j, sw)] * weight
            with only_if(vertical.writes_inside(i, sh)):
                value = or_zero(horizontal.writes_inside(j, sw), value)
                T.buffer_store(acc, acc[c, i, j] + value, [c, i, j])
        with loops("c i j", *shape) as found, T.sblock("epilogue"):
            c, i, j = axes("SSS", found)
            if spec.depthwise:
                T.buffer_store(dx, acc[c, i, j], [0, channels[c], i, j])
            else:
                T.buffer_store(dx, dx[0, c, i, j] + acc[c, i, j], [0, c, i, j])

    return body


def _scattered_dx(spec: Conv2DSpec, rows: int) -> Any:
    """Stride and dilation together, depthwise: one channel at a time into a padded plane."""
    (sh, sw), (dh, dw) = spec.stride, spec.dilation

    def body(dy: Any, w: Any, w_rows: Any, channels: Any, dx: Any) -> None:
        plane = T.sblock_alloc_buffer((spec.padded_height, spec.padded_width), "float32")
        with T.serial(rows) as r:
            with T.grid(spec.padded_height, spec.padded_width) as (i, j), T.sblock("zero"):
                vi, vj = T.axis.remap("SS", [i, j])
                T.buffer_store(plane, f32(0.0), [vi, vj])
            with (
                T.grid(*spec.kernel, spec.out_height, spec.out_width) as (kh, kw, i, j),
                T.sblock("conv2d_input_grad_rows"),
            ):
                vr, vh, vw, vi, vj = T.axis.remap("SRRRR", [r, kh, kw, i, j])
                at = (vi * sh + vh * dh, vj * sw + vw * dw)
                T.buffer_store(
                    plane, plane[at] + dy[0, channels[vr], vi, vj] * w_rows[vr, 0, vh, vw], list(at)
                )
            with T.grid(spec.height, spec.width) as (i, j), T.sblock("crop"):
                vr, vi, vj = T.axis.remap("SSS", [r, i, j])
                value = plane[vi + spec.padding[0], vj + spec.padding[1]]
                T.buffer_store(dx, value, [0, channels[vr], vi, vj])

    return body


def linear_input_grad_rows(spec: LinearSpec, rows: int) -> tirx.PrimFunc:
    """dx += dy[:, channels] · (w_rows − w[channels]), in place. Arguments: dy, w, w_rows, channels, dx."""
    args = [
        Arg("dy", (spec.rows, spec.out_features)),
        Arg("w", spec.weight_shape),
        Arg("w_rows", (rows, spec.in_features)),
        Arg("channels", (rows,), "int32"),
        Arg("dx", (spec.rows, spec.in_features), role="inout"),
    ]

    def body(dy: Any, w: Any, w_rows: Any, channels: Any, dx: Any) -> None:
        acc = T.sblock_alloc_buffer((spec.rows, spec.in_features), "float32")
        with T.grid(spec.rows, spec.in_features, rows) as (n, k, r), T.sblock("linear_input_grad_rows"):
            vn, vk, vr = T.axis.remap("SSR", [n, k, r])
            with T.init():
                T.buffer_store(acc, f32(0.0), [vn, vk])
            term = dy[vn, channels[vr]] * (w_rows[vr, vk] - w[channels[vr], vk])
            T.buffer_store(acc, acc[vn, vk] + term, [vn, vk])
        with T.grid(spec.rows, spec.in_features) as (n, k), T.sblock("epilogue"):
            at = T.axis.remap("SS", [n, k])
            T.buffer_store(dx, dx[tuple(at)] + acc[tuple(at)], list(at))

    macs = rows * spec.rows * spec.in_features
    return make_kernel("linear_input_grad_rows", spec, args, body, rows_trained=rows, macs=macs)
