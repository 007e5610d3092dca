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

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel
from tvm_tinytrain.passes.kernels.conv2d import clamp
from tvm_tinytrain.passes.kernels.conv2d_grad import selected_planes
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec


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
        padded = selected_planes(x, spec, channels, None, compact)
        shape = (rows, spec.out_height, spec.out_width)
        acc = T.sblock_alloc_buffer(shape, "float32")
        (sh, sw), (dh, dw) = spec.stride, spec.dilation
        with T.grid(*shape, spec.group_inputs, *spec.kernel) as (r, i, j, c, kh, kw), T.sblock("conv2d_rows"):
            vr, vi, vj, vc, vh, vw = T.axis.remap("SSSRRR", [r, i, j, c, kh, kw])
            with T.init():
                T.buffer_store(acc, f32(0.0), [vr, vi, vj])
            product = padded(vr, vc, vi * sh + vh * dh, vj * sw + vw * dw) * w[vr, vc, vh, vw]
            T.buffer_store(acc, acc[vr, vi, vj] + product, [vr, vi, vj])
        with T.grid(*shape) as (r, i, j), T.sblock("epilogue"):
            vr, vi, vj = T.axis.remap("SSS", [r, i, j])
            value = acc[vr, vi, vj]
            if bias is not None:
                value = value + rest[0][vr if bias == "rows" else channels[vr]]
            T.buffer_store(y, clamp(value, low, high), [0, channels[vr], vi, vj])

    macs = rows * (spec.macs // spec.out_channels)
    return make_kernel("conv2d_rows", spec, args, body, rows=rows, bias=bias, low=low, high=high, macs=macs)


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
    body = _depthwise_dx(spec, rows) if spec.depthwise else _dense_dx(spec, rows)
    macs = rows * (spec.macs // spec.out_channels)
    return make_kernel("conv2d_input_grad_rows", spec, args, body, rows=rows, macs=macs)


def _depthwise_dx(spec: Conv2DSpec, rows: int) -> Any:
    """Scatter of one channel at a time into a padded plane, for any stride."""
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


def _dense_dx(spec: Conv2DSpec, rows: int) -> Any:
    """Gather over the trained rows; taps outside of dy are left out."""
    (sh, sw), (dh, dw) = spec.stride, spec.dilation
    top, left = spec.padding[0], spec.padding[1]

    def body(dy: Any, w: Any, w_rows: Any, channels: Any, dx: Any) -> None:
        shape = (spec.in_channels, spec.height, spec.width)
        acc = T.sblock_alloc_buffer(shape, "float32")
        simple = spec.kernel == (1, 1) and spec.stride == (1, 1) and not spec.padded
        with (
            T.grid(*shape, rows, *spec.kernel) as (c, i, j, r, kh, kw),
            T.sblock("conv2d_input_grad_rows"),
        ):
            vc, vi, vj, vr, vh, vw = T.axis.remap("SSSRRR", [c, i, j, r, kh, kw])
            with T.init():
                T.buffer_store(acc, f32(0.0), [vc, vi, vj])
            delta = w_rows[vr, vc, vh, vw] - w[channels[vr], vc, vh, vw]
            if simple:
                term = dy[0, channels[vr], vi, vj] * delta
            else:
                row, column = vi + top - vh * dh, vj + left - vw * dw
                out_i, out_j = tirx.floordiv(row, sh), tirx.floordiv(column, sw)
                inside = tirx.all(
                    row >= 0, column >= 0, out_i < spec.out_height, out_j < spec.out_width,
                    tirx.floormod(row, sh) == 0, tirx.floormod(column, sw) == 0,
                )  # fmt: skip
                term = tirx.if_then_else(inside, dy[0, channels[vr], out_i, out_j] * delta, f32(0.0))
            T.buffer_store(acc, acc[vc, vi, vj] + term, [vc, vi, vj])
        with T.grid(*shape) as (c, i, j), T.sblock("epilogue"):
            vc, vi, vj = T.axis.remap("SSS", [c, i, j])
            T.buffer_store(dx, dx[0, vc, vi, vj] + acc[vc, vi, vj], [0, vc, vi, vj])

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
