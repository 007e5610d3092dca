"""An inverted bottleneck in one kernel, row by row: the expanded tensors never exist.

For each row of the depthwise convolution's input, one after the other (padding gives rows of zeros):

    1. ``first`` computes the row into the ring, over the oldest one: ring[channels, kernel rows, padded width];
    2. when the window is full (then after each ``stride`` rows) ``depthwise`` computes one row of its result from the ring;
    3. ``project`` turns that row into one row of y, and adds the row of x where the block has a skip connection.

Row i of y is written when rows 0 … i + kernel − 1 − padding of x have been read, so a block of stride one may overwrite its input. The
sums run in the order of the separate kernels: the results are the same.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, intermediate, loops, make_kernel
from tvm_tinytrain.passes.kernels.conv2d import clamp
from tvm_tinytrain.passes.kernels.stream_spec import Stage, StreamSpec

_SLOT, _ROW, _DUE, _OUT = range(4)
"""Counters: slot of the oldest row in the ring, row of the depthwise input, rows until a row of the result is due, that row."""


def streamed_block(spec: StreamSpec) -> tirx.PrimFunc:
    """Arguments: x, per stage its weight and (where it has one) its bias, y; with ``inplace`` y is x."""
    args = [Arg("x", spec.x_shape, spec.input_dtype, "inout" if spec.inplace else "in")]
    for name, stage in zip(_names(spec), spec.stages, strict=True):
        args.append(Arg(f"w_{name}", stage.conv.weight_shape))
        if stage.bias:
            args.append(Arg(f"b_{name}", (stage.conv.out_channels,)))
    if not spec.inplace:
        args.append(Arg("y", spec.y_shape, role="out"))

    def body(x: Any, *rest: Any) -> None:
        given = list(rest)
        weights = {}
        for name, stage in zip(_names(spec), spec.stages, strict=True):
            weights[name] = (given.pop(0), given.pop(0) if stage.bias else None)
        _Block(spec, x, weights, x if spec.inplace else given[0]).emit()

    return make_kernel("streamed_block", asdict(spec), args, body, macs=spec.macs)


def _names(spec: StreamSpec) -> list[str]:
    return ["first", "depthwise", "project"][3 - len(spec.stages) :]


class _Block:
    """Emits the kernel's statements; one method for each part."""

    def __init__(self, spec: StreamSpec, x: Any, weights: dict[str, tuple[Any, Any]], y: Any) -> None:
        self.spec, self.x, self.weights, self.y = spec, x, weights, y
        self.ring = intermediate("ring", spec.ring_shape)
        self.row = intermediate("row", spec.row_shape)
        self.patch = None if spec.patch_shape is None else intermediate("patch", spec.patch_shape)
        self.count = T.sblock_alloc_buffer((4,), "int32", scope="local")

    def emit(self) -> None:
        """The whole kernel."""
        window = self.spec.depthwise.conv
        channels, slots, width = self.spec.ring_shape
        with loops("c s j", channels, slots, width) as (c, s, j):
            T.buffer_store(self.ring, f32(0.0), [c, s, j])
        for counter, value in ((_SLOT, 0), (_ROW, -window.padding[0]), (_DUE, slots), (_OUT, 0)):
            self._set(counter, value)
        with T.serial(self.spec.rows):
            row = self._get(_ROW)
            with T.If(tirx.all(row >= 0, row < window.height)):
                with T.Then():
                    self._fill()
                with T.Else(), loops("c j", channels, width) as (c, j):
                    T.buffer_store(self.ring, f32(0.0), [c, self._get(_SLOT), j])
            self._set(_SLOT, tirx.Select(self._get(_SLOT) == slots - 1, 0, self._get(_SLOT) + 1))
            self._set(_ROW, self._get(_ROW) + 1)
            self._set(_DUE, self._get(_DUE) - 1)
            with T.If(self._get(_DUE) == 0), T.Then():
                self._depthwise()
                self._project()
                self._set(_DUE, window.stride[0])
                self._set(_OUT, self._get(_OUT) + 1)

    def _get(self, counter: int) -> Any:
        return self.count[counter]

    def _set(self, counter: int, value: Any) -> None:
        T.buffer_store(self.count, tirx.const(value, "int32") if isinstance(value, int) else value, [counter])

    def _fill(self) -> None:
        """One row of the depthwise input goes into the ring's oldest slot."""
        spec, left = self.spec, self.spec.depthwise.conv.padding[1]
        row, slot = self._get(_ROW), self._get(_SLOT)
        if spec.first is None:
            with loops("c j", spec.ring_shape[0], spec.depthwise.conv.width) as (c, j):
                T.buffer_store(self.ring, self._input(c, row, j), [c, slot, left + j])
            return
        conv = spec.first.conv
        if self.patch is not None:
            self._copy_patch(row)

        def element(c: Any, j: Any, tap: list[Any]) -> Any:
            if self.patch is None:
                return self.x[0, tap[0], row, j]
            column = j * conv.stride[1] + tap[2] * conv.dilation[1]
            return self.patch[tap[0], tap[1], column]

        taps = (conv.in_channels, *(conv.kernel if self.patch is not None else (1, 1)))
        self._product(
            "first", spec.first, spec.tile_first, (conv.out_channels, conv.out_width), taps, element,
            lambda c, j, value: T.buffer_store(self.ring, value, [c, slot, left + j]),
        )  # fmt: skip

    def _input(self, c: Any, i: Any, j: Any) -> Any:
        value = self.x[0, c, i, j]
        if self.spec.input_dtype == "float32":
            return value
        return value.astype("float32") * f32(self.spec.scale) + f32(self.spec.offset)

    def _copy_patch(self, row: Any) -> None:
        """The input rows that the first stage reads for ``row``, as float32, with zeros around."""
        assert self.spec.first is not None and self.spec.patch_shape is not None
        conv = self.spec.first.conv
        with loops("c k j", *self.spec.patch_shape) as (c, k, j):
            i = row * conv.stride[0] - conv.padding[0] + k * conv.dilation[0]
            column = j - conv.padding[1]
            inside = all_of(
                True if conv.padding[0] == 0 else i >= 0,
                True if conv.padding[2] == 0 else i < conv.height,
                True if conv.padding[1] == 0 else column >= 0,
                True if conv.padding[3] == 0 else column < conv.width,
            )
            value = self._input(c, i, column)
            value = value if inside is True else tirx.if_then_else(inside, value, f32(0.0))
            T.buffer_store(self.patch, value, [c, k, j])

    def _depthwise(self) -> None:
        spec = self.spec
        conv, slots = spec.depthwise.conv, spec.ring_shape[1]
        tile = spec.tile_depthwise
        weight, bias = self.weights["depthwise"]
        with loops("c t", conv.out_channels, conv.out_width // tile) as (c, t):
            acc = T.sblock_alloc_buffer((tile,), "float32", scope="local")
            with T.unroll(tile) as u:
                T.buffer_store(acc, f32(0.0) if bias is None else bias[c], [u])
            with T.serial(conv.kernel[0]) as kh:
                at = self._get(_SLOT) + kh
                slot = tirx.Select(at < slots, at, at - slots)
                with T.unroll(conv.kernel[1]) as kw, T.unroll(tile) as u:
                    column = (t * tile + u) * conv.stride[1] + kw
                    tap = self.ring[c, slot, column] * weight[c, 0, kh, kw]
                    T.buffer_store(acc, acc[u] + tap, [u])
            with T.unroll(tile) as u:
                T.buffer_store(self.row, _clamped(spec.depthwise, acc[u]), [c, t * tile + u])

    def _project(self) -> None:
        spec, out = self.spec, self._get(_OUT)
        conv = spec.project.conv

        def store(o: Any, j: Any, value: Any) -> None:
            if spec.residual:
                value = self.x[0, o, out, j] + value
            T.buffer_store(self.y, value, [0, o, out, j])

        self._product(
            "project", spec.project, spec.tile_project, (conv.out_channels, conv.out_width), (conv.in_channels, 1, 1),
            lambda c, j, tap: self.row[tap[0], j], store,
        )  # fmt: skip

    def _product(
        self, name: str, stage: Stage, tile: tuple[int, int], extents: tuple[int, int], taps: tuple[int, int, int],
        element: Any, store: Any,
    ) -> None:  # fmt: skip
        """store(c, j, clamp(bias[c] + Σ_taps element(c, j, tap) · weight[c, tap])), one register tile after the other."""
        weight, bias = self.weights[name]
        high, wide = tile
        with loops("c t", extents[0] // high, extents[1] // wide) as (ct, jt):
            acc = T.sblock_alloc_buffer((high * wide,), "float32", scope="local")
            with T.unroll(high) as a, T.unroll(wide) as b:
                T.buffer_store(acc, f32(0.0) if bias is None else bias[ct * high + a], [a * wide + b])
            with loops("k kh kw", *taps) as tap, T.unroll(high) as a, T.unroll(wide) as b:
                c, j = ct * high + a, jt * wide + b
                product = element(c, j, tap) * weight[(c, *tap)]
                T.buffer_store(acc, acc[a * wide + b] + product, [a * wide + b])
            with T.unroll(high) as a, T.unroll(wide) as b:
                c, j = ct * high + a, jt * wide + b
                store(c, j, _clamped(stage, acc[a * wide + b]))


def _clamped(stage: Stage, value: Any) -> Any:
    return clamp(value, stage.low, stage.high)
