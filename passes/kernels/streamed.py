"""Inverted bottlenecks in one kernel, row by row: the expanded tensors never exist.

For each row of the first depthwise convolution's input, one after the other (padding gives rows of zeros):

    1. ``first`` computes the row into the ring, over the oldest one: ring[channels, kernel rows, padded width];
    2. when the window is full (then after each ``stride`` rows) ``depthwise`` computes one row of its result from the ring;
    3. ``project`` turns that row into one row of the block's result, and adds the row of x where there is a skip connection.
       That row is a row of y, or enters the ring of the next block of the chain at once.

Row i of y is written when rows 0 … i + kernel − 1 − padding of x have been read, so a block of stride one may overwrite its input. The
sums run in the order of the separate kernels: the results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, intermediate, loops, make_kernel
from tvm_tinytrain.passes.kernels.conv2d import clamp
from tvm_tinytrain.passes.kernels.stream_spec import Link, Stage, StreamSpec

_SLOT, _DUE, _OUT = range(3)
"""Counters of a level: slot of the oldest row in its ring, rows until a row of its result is due, number of that row."""


def streamed_block(spec: StreamSpec) -> tirx.PrimFunc:
    """Arguments: x, per stage its weight and (where it has one) its bias, y; with ``inplace`` y is x."""
    args = [Arg("x", spec.x_shape, spec.input_dtype, "inout" if spec.inplace else "in")]
    for index, stage in enumerate(spec.stages):
        args.append(Arg(f"w_{index}", stage.conv.weight_shape))
        if stage.bias:
            args.append(Arg(f"b_{index}", (stage.conv.out_channels,)))
    if not spec.inplace:
        args.append(Arg("y", spec.y_shape, role="out"))

    def body(x: Any, *rest: Any) -> None:
        given = list(rest)
        weights = [(given.pop(0), given.pop(0) if stage.bias else None) for stage in spec.stages]
        _Chain(spec, x, weights, x if spec.inplace else given[0]).emit()

    return make_kernel("streamed_block", asdict(spec), args, body, macs=spec.macs)


class _Level:
    """One block of the chain: its rows, its counters and its weights by stage."""

    def __init__(self, index: int, link: Link, weights: list[tuple[Any, Any]]) -> None:
        self.index, self.link = index, link
        names = [n for n in ("first", "depthwise", "project") if getattr(link, n) is not None]
        self.weights = dict(zip(names, weights, strict=True))
        self.ring = intermediate(f"ring_{index}", link.ring_shape)
        self.row = intermediate(f"row_{index}", link.row_shape)
        self.line = intermediate(f"line_{index}", link.line_shape) if index else None
        self.count = intermediate_local(3)
        self.left = link.depthwise.conv.padding[1]

    def get(self, counter: int) -> Any:
        """The current value of a counter."""
        return self.count[counter]

    def set(self, counter: int, value: Any) -> None:
        """Changes a counter."""
        _set(self.count, counter, value)


def intermediate_local(size: int, dtype: str = "int32") -> Any:
    """Variables of the kernel, addressed by constants."""
    return T.sblock_alloc_buffer((size,), dtype, scope="local")


def _set(buffer: Any, index: int, value: Any) -> None:
    T.buffer_store(buffer, tirx.const(value, "int32") if isinstance(value, int) else value, [index])


class _Chain:
    """Emits the kernel's statements; one method for each part."""

    def __init__(self, spec: StreamSpec, x: Any, weights: list[tuple[Any, Any]], y: Any) -> None:
        self.spec, self.x, self.y = spec, x, y
        self.levels: list[_Level] = []
        for index, link in enumerate(spec.links):
            count = len(link.stages)
            self.levels.append(_Level(index, link, weights[:count]))
            weights = weights[count:]
        self.patch: Any = None if spec.patch_shape is None else intermediate("patch", spec.patch_shape)
        self.next = intermediate_local(1)

    def emit(self) -> None:
        """The whole kernel."""
        top = self.levels[0]
        height = top.link.depthwise.conv.height
        for level in self.levels:
            self._start(level)
        _set(self.next, 0, -top.link.depthwise.conv.padding[0])
        with T.serial(self.spec.rows):
            row = self.next[0]
            with T.If(tirx.all(row >= 0, row < height)):
                with T.Then():
                    self._fill(top)
                with T.Else():
                    self._zero(top)
            _set(self.next, 0, self.next[0] + 1)
            self._advance(top)

    def _start(self, level: _Level) -> None:
        """Zeros in the ring; behind the first level they stand for the padding above, so that fewer rows are missing."""
        slots = level.link.ring_shape[1]
        with loops("c s j", *level.link.ring_shape) as (c, s, j):
            T.buffer_store(level.ring, f32(0.0), [c, s, j])
        above = level.link.depthwise.conv.padding[0] if level.index else 0
        for counter, value in ((_SLOT, above), (_DUE, slots - above), (_OUT, 0)):
            level.set(counter, value)

    def _zero(self, level: _Level) -> None:
        channels, _, width = level.link.ring_shape
        with loops("c j", channels, width) as (c, j):
            T.buffer_store(level.ring, f32(0.0), [c, level.get(_SLOT), j])

    def _advance(self, level: _Level) -> None:
        """A row has entered the ring of ``level``: where a row of its result is due, compute it and hand it on."""
        slots = level.link.ring_shape[1]
        slot, due = level.get(_SLOT), level.get(_DUE)
        level.set(_SLOT, tirx.Select(slot == slots - 1, 0, slot + 1))
        level.set(_DUE, due - 1)
        last = level.index == len(self.levels) - 1
        with T.If(level.get(_DUE) == 0), T.Then():
            if last:
                self._result(level)
            else:
                following = self.levels[level.index + 1]
                # rows beyond the last one are the padding below the next block's input
                with T.If(level.get(_OUT) < level.link.project.conv.out_height):
                    with T.Then():
                        self._result(level)
                        self._fill(following)
                    with T.Else():
                        self._zero(following)
            level.set(_DUE, level.link.depthwise.conv.stride[0])
            level.set(_OUT, level.get(_OUT) + 1)
            if not last:
                self._advance(self.levels[level.index + 1])

    def _fill(self, level: _Level) -> None:
        """One row of the depthwise input goes into the ring's oldest slot."""
        link, left, slot = level.link, level.left, level.get(_SLOT)
        if level.line is not None:
            line = level.line
            element: Callable[..., Any] = lambda j, tap: line[tap[0], j]  # noqa: E731
        elif self.spec.direct:
            element = lambda j, tap: self.x[0, tap[0], self.next[0], j]  # noqa: E731
        elif link.first is None:
            element = lambda j, tap: self._input(tap[0], self.next[0], j)  # noqa: E731
        else:
            conv = link.first.conv
            self._copy_patch(link.first)
            element = lambda j, tap: self.patch[  # noqa: E731
                tap[0], tap[1], j * conv.stride[1] + tap[2] * conv.dilation[1]
            ]
        if link.first is None:
            with loops("c j", link.ring_shape[0], link.depthwise.conv.width) as (c, j):
                T.buffer_store(level.ring, element(j, [c]), [c, slot, left + j])
            return
        conv = link.first.conv
        extents = (conv.out_channels, conv.out_width)
        taps = (conv.in_channels, *conv.kernel)
        self._product(
            level, "first", link.tile_first, extents, taps, element,
            lambda c, j, value: T.buffer_store(level.ring, value, [c, slot, left + j]),
        )  # fmt: skip

    def _input(self, c: Any, i: Any, j: Any) -> Any:
        value = self.x[0, c, i, j]
        if self.spec.input_dtype == "float32":
            return value
        return value.astype("float32") * f32(self.spec.scale) + f32(self.spec.offset)

    def _copy_patch(self, first: Stage) -> None:
        """The input rows that the first stage reads for its next row, as float32, with zeros around."""
        assert self.spec.patch_shape is not None
        conv = first.conv
        with loops("c k j", *self.spec.patch_shape) as (c, k, j):
            i = self.next[0] * conv.stride[0] - conv.padding[0] + k * conv.dilation[0]
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

    def _result(self, level: _Level) -> None:
        """One row of the block's result: a row of y, or the line that the next block reads."""
        self._depthwise(level)
        conv, out = level.link.project.conv, level.get(_OUT)
        last = level.index == len(self.levels) - 1

        def store(o: Any, j: Any, value: Any) -> None:
            if self.spec.residual and level.index == 0:
                value = self.x[0, o, out, j] + value
            if last:
                T.buffer_store(self.y, value, [0, o, out, j])
            else:
                T.buffer_store(self.levels[level.index + 1].line, value, [o, j])

        self._product(
            level, "project", level.link.tile_project, (conv.out_channels, conv.out_width),
            (conv.in_channels, 1, 1), lambda j, tap: level.row[tap[0], j], store,
        )  # fmt: skip

    def _depthwise(self, level: _Level) -> None:
        link = level.link
        conv, slots, tile = link.depthwise.conv, link.ring_shape[1], link.tile_depthwise
        weight, bias = level.weights["depthwise"]
        with loops("c t", conv.out_channels, conv.out_width // tile) as (c, t):
            acc = intermediate_local(tile, "float32")
            with _pixels(tile, link.lanes) as u:
                T.buffer_store(acc, f32(0.0) if bias is None else bias[c], [u])
            with T.serial(conv.kernel[0]) as kh:
                at = level.get(_SLOT) + kh
                slot = tirx.Select(at < slots, at, at - slots)
                with T.unroll(conv.kernel[1]) as kw, _pixels(tile, link.lanes) as u:
                    column = (t * tile + u) * conv.stride[1] + kw
                    tap = level.ring[c, slot, column] * weight[c, 0, kh, kw]
                    T.buffer_store(acc, acc[u] + tap, [u])
            with _pixels(tile, link.lanes) as u:
                T.buffer_store(level.row, _clamped(link.depthwise, acc[u]), [c, t * tile + u])

    def _product(
        self, level: _Level, name: str, tile: tuple[int, int], extents: tuple[int, int],
        taps: tuple[int, int, int], element: Callable[..., Any], store: Callable[..., None],
    ) -> None:  # fmt: skip
        """store(c, j, clamp(bias[c] + Σ_taps element(j, tap) · weight[c, tap])), one register tile after the other."""
        weight, bias = level.weights[name]
        stage = getattr(level.link, name)
        high, wide = tile
        with loops("c t", extents[0] // high, extents[1] // wide) as (ct, jt):
            acc = intermediate_local(high * wide, "float32")
            with T.unroll(high) as a, _pixels(wide, level.link.lanes) as b:
                T.buffer_store(acc, f32(0.0) if bias is None else bias[ct * high + a], [a * wide + b])
            with loops("k kh kw", *taps) as tap, T.unroll(high) as a, _pixels(wide, level.link.lanes) as b:
                c, j = ct * high + a, jt * wide + b
                T.buffer_store(acc, acc[a * wide + b] + element(j, tap) * weight[(c, *tap)], [a * wide + b])
            with T.unroll(high) as a, _pixels(wide, level.link.lanes) as b:
                store(ct * high + a, jt * wide + b, _clamped(stage, acc[a * wide + b]))


@contextmanager
def _pixels(count: int, lanes: int) -> Iterator[Any]:
    """An unrolled loop over the pixels of a tile, ``lanes`` of them at once where they divide it."""
    if lanes == 1 or count % lanes:
        with T.unroll(count) as pixel:
            yield pixel
        return
    with T.unroll(count // lanes) as vector, T.vectorized(lanes) as lane:
        yield vector * lanes + lane


def _clamped(stage: Stage, value: Any) -> Any:
    return clamp(value, stage.low, stage.high)
