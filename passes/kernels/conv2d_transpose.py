"""Transposed convolution (torch.nn.ConvTranspose2d): forward with bias and clamp, and its gradients.

It is described by the `Conv2DSpec` of the convolution whose input gradient it computes: ``spec.out_channels × out_height ×
out_width`` is what the layer reads and ``spec.in_channels × height × width`` what it writes. The weight is stored as
[outputs, inputs of one group, kh, kw], output channels first like every other layer's, so that a channel list means the same.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, make_kernel
from tvm_tinytrain.passes.kernels.conv2d import clamp
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.sinks import Sink, Write


def transposed_weight_shape(spec: Conv2DSpec) -> tuple[int, int, int, int]:
    """[outputs, inputs of one group, kh, kw]."""
    return (spec.in_channels, spec.group_outputs, *spec.kernel)


def _x_shape(spec: Conv2DSpec) -> tuple[int, int, int, int]:
    return (1, spec.out_channels, spec.out_height, spec.out_width)


def _y_shape(spec: Conv2DSpec) -> tuple[int, int, int, int]:
    return (1, spec.in_channels, spec.height, spec.width)


def _input_of(spec: Conv2DSpec, output: Any, inner: Any) -> Any:
    """The input channel behind the ``inner``-th one of the group that ``output`` belongs to."""
    if spec.groups == 1:
        return inner
    return tirx.floordiv(output, spec.group_inputs) * spec.group_outputs + inner


def conv2d_transpose(
    spec: Conv2DSpec, *, bias: bool = False, low: float | None = None, high: float | None = None
) -> tirx.PrimFunc:
    """y = clamp(convᵀ(x, w) + b, low, high). Arguments: x, w, (b[outputs]), y.

    Each input element scatters its kernel into a padded output, plane by plane: exactly the multiply-accumulates that count.
    """
    args = [Arg("x", _x_shape(spec)), Arg("w", transposed_weight_shape(spec))]
    if bias:
        args.append(Arg("b", (spec.in_channels,)))
    args.append(Arg("y", _y_shape(spec), role="out"))
    (sh, sw), (dh, dw) = spec.stride, spec.dilation
    top, left = spec.padding[:2]
    plane = (spec.padded_height, spec.padded_width)

    def body(x: Any, w: Any, *rest: Any) -> None:
        y = rest[-1]
        padded = T.sblock_alloc_buffer((spec.in_channels, *plane), "float32")
        with T.serial(spec.in_channels) as o:
            with T.grid(*plane) as (i, j), T.sblock("zero"):
                vo, vi, vj = T.axis.remap("SSS", [o, i, j])
                T.buffer_store(padded, f32(0.0), [vo, vi, vj])
            ranges = (spec.group_outputs, *spec.kernel, spec.out_height, spec.out_width)
            with T.grid(*ranges) as (c, kh, kw, i, j), T.sblock("conv2d_transpose"):
                vo, vc, vh, vw, vi, vj = T.axis.remap("SRRRRR", [o, c, kh, kw, i, j])
                at = [vo, vi * sh + vh * dh, vj * sw + vw * dw]
                product = x[0, _input_of(spec, vo, vc), vi, vj] * w[vo, vc, vh, vw]
                T.buffer_store(padded, padded[tuple(at)] + product, at)
            with T.grid(spec.height, spec.width) as (i, j), T.sblock("crop"):
                vo, vi, vj = T.axis.remap("SSS", [o, i, j])
                value = padded[vo, vi + top, vj + left]
                value = value + rest[0][vo] if bias else value
                T.buffer_store(y, clamp(value, low, high), [0, vo, vi, vj])

    return make_kernel("conv2d_transpose", spec, args, body, bias=bias, low=low, high=high, macs=spec.macs)


def _pad_output_grad(dy: Any, spec: Conv2DSpec) -> Any:
    """Emits block ``pad``: dy with the padding that the forward pass cropped."""
    if not spec.padded:
        return dy
    top, left = spec.padding[:2]
    shape = (1, spec.in_channels, spec.padded_height, spec.padded_width)
    padded = T.sblock_alloc_buffer(shape, "float32")
    with T.grid(*shape) as (n, o, i, j), T.sblock("pad"):
        vn, vo, vi, vj = T.axis.remap("SSSS", [n, o, i, j])
        inside = all_of(vi >= top, vi < top + spec.height, vj >= left, vj < left + spec.width)
        value = tirx.if_then_else(inside, dy[vn, vo, vi - top, vj - left], f32(0.0))
        T.buffer_store(padded, value, [vn, vo, vi, vj])
    return padded


def conv2d_transpose_input_grad(spec: Conv2DSpec) -> tirx.PrimFunc:
    """dx = conv(dy, w). Arguments: dy, w[outputs, inputs of one group, kh, kw], dx."""
    (sh, sw), (dh, dw) = spec.stride, spec.dilation

    def body(dy: Any, w: Any, dx: Any) -> None:
        padded = _pad_output_grad(dy, spec)
        acc = T.sblock_alloc_buffer(_x_shape(spec), "float32")
        ranges = (*_x_shape(spec), spec.group_inputs, *spec.kernel)
        with T.grid(*ranges) as (n, c, i, j, o, kh, kw), T.sblock("conv2d_transpose_input_grad"):
            vn, vc, vi, vj, vo, vh, vw = T.axis.remap("SSSSRRR", [n, c, i, j, o, kh, kw])
            if spec.groups == 1:
                output, inner = vo, vc
            else:
                output = tirx.floordiv(vc, spec.group_outputs) * spec.group_inputs + vo
                inner = tirx.floormod(vc, spec.group_outputs)
            with T.init():
                T.buffer_store(acc, f32(0.0), [vn, vc, vi, vj])
            tap = padded[vn, output, vi * sh + vh * dh, vj * sw + vw * dw] * w[output, inner, vh, vw]
            T.buffer_store(acc, acc[vn, vc, vi, vj] + tap, [vn, vc, vi, vj])
        with T.grid(*_x_shape(spec)) as (n, c, i, j), T.sblock("epilogue"):
            at = T.axis.remap("SSSS", [n, c, i, j])
            T.buffer_store(dx, acc[tuple(at)], list(at))

    args = [
        Arg("dy", _y_shape(spec)), Arg("w", transposed_weight_shape(spec)), Arg("dx", _x_shape(spec), role="out")
    ]  # fmt: skip
    return make_kernel("conv2d_transpose_input_grad", spec, args, body, macs=spec.macs)


def conv2d_transpose_weight_grad(
    spec: Conv2DSpec,
    sink: Sink | None = None,
    *,
    channels: int | None = None,
    inputs: int | None = None,
    compact_weight: bool = False,
) -> tirx.PrimFunc:
    """∂L/∂w of the selected output (and input) channels, handed to ``sink``; as `conv2d_weight_grad`.

    Arguments: x, dy, (channels[k] int32), (inputs[m] int32: within a group), then the sink's.
    """
    sink = sink or Write()
    full = transposed_weight_shape(spec)
    compact = (channels or full[0], inputs or full[1], *spec.kernel)
    args = [Arg("x", _x_shape(spec)), Arg("dy", _y_shape(spec))]
    if channels is not None:
        args.append(Arg("channels", (channels,), "int32"))
    if inputs is not None:
        args.append(Arg("inputs", (inputs,), "int32"))
    own = len(args)
    args += sink.args(compact, compact if compact_weight else full)
    (sh, sw), (dh, dw) = spec.stride, spec.dilation

    def body(*bufs: Any) -> None:
        x, lists = bufs[0], list(bufs[2:own])
        outs = lists.pop(0) if channels is not None else None
        ins = lists.pop(0) if inputs is not None else None
        padded = _pad_output_grad(bufs[1], spec)
        grad = T.sblock_alloc_buffer(compact, "float32")
        ranges = (*compact, spec.out_height, spec.out_width)
        with T.grid(*ranges) as (r, c, kh, kw, i, j), T.sblock("conv2d_transpose_weight_grad"):
            vr, vc, vh, vw, vi, vj = T.axis.remap("SSSSRR", [r, c, kh, kw, i, j])
            output = vr if outs is None else outs[vr]
            channel = _input_of(spec, output, vc if ins is None else ins[vc])
            with T.init():
                T.buffer_store(grad, f32(0.0), [vr, vc, vh, vw])
            tap = x[0, channel, vi, vj] * padded[0, output, vi * sh + vh * dh, vj * sw + vw * dw]
            T.buffer_store(grad, grad[vr, vc, vh, vw] + tap, [vr, vc, vh, vw])
        with T.grid(*compact) as (r, c, kh, kw), T.sblock("sink"):
            at = T.axis.remap("SSSS", [r, c, kh, kw])
            output = at[0] if outs is None or compact_weight else outs[at[0]]
            inner = at[1] if ins is None or compact_weight else ins[at[1]]
            sink.emit(bufs[own:], list(at), [output, inner, at[2], at[3]], grad[tuple(at)])

    macs = compact[0] * compact[1] * spec.kernel[0] * spec.kernel[1] * spec.out_height * spec.out_width
    return make_kernel(
        "conv2d_transpose_weight_grad", spec, args, body, sink=sink.kind, update=asdict(sink), channels=channels,
        inputs=inputs, compact_weight=compact_weight, macs=macs,
    )  # fmt: skip
