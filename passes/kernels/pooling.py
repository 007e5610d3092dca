"""Gradients of max and average pooling of one sample, NCHW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, make_kernel


@dataclass(frozen=True)
class PoolSpec:
    """x[1, channels, height, width] → y[1, channels, out_height, out_width]; padding is (top, left, bottom, right)."""

    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    count_include_pad: bool = False

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """[1, channels, height, width]."""
        return (1, self.channels, self.height, self.width)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """[1, channels, out_height, out_width]."""
        return (1, self.channels, self.out_height, self.out_width)

    def position(self, i: Any, j: Any, kh: Any, kw: Any) -> tuple[Any, Any]:
        """Row and column of the input under tap (kh, kw) of output (i, j)."""
        return (
            i * self.stride[0] + kh * self.dilation[0] - self.padding[0],
            j * self.stride[1] + kw * self.dilation[1] - self.padding[1],
        )

    def inside(self, row: Any, column: Any) -> Any:
        """Whether a position lies in the input; Python's True where that is certain."""
        padded = any(self.padding) or self._overhangs()
        return all_of(row >= 0, row < self.height, column >= 0, column < self.width) if padded else True

    def _overhangs(self) -> bool:
        """Whether the last window reaches past the input (ceil mode)."""
        last = ((self.out_height, self.out_width), self.stride, self.kernel, self.dilation)
        reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, k, d in zip(*last, strict=True)]
        return reach[0] > self.height or reach[1] > self.width


def max_pool2d_grad(spec: PoolSpec) -> tirx.PrimFunc:
    """dx gets dy at the first maximum of each window, as torch does. Arguments: x, dy, dx."""

    def body(x: Any, dy: Any, dx: Any) -> None:
        best = T.sblock_alloc_buffer((1,), "float32", scope="local")
        place = T.sblock_alloc_buffer((2,), "int32", scope="local")
        with T.grid(*spec.x_shape) as (n, c, i, j), T.sblock("zero"):
            at = T.axis.remap("SSSS", [n, c, i, j])
            T.buffer_store(dx, f32(0.0), list(at))
        with T.grid(*spec.y_shape) as (n, c, i, j), T.sblock("max_pool2d_grad"):
            vn, vc, vi, vj = T.axis.remap("SSSS", [n, c, i, j])
            T.buffer_store(best, f32(-3.4028234663852886e38), [0])
            T.buffer_store(place, tirx.const(-1, "int32"), [0])
            T.buffer_store(place, tirx.const(0, "int32"), [1])
            with T.grid(*spec.kernel) as (kh, kw):
                row, column = spec.position(vi, vj, kh, kw)
                first = tirx.any(place[0] < 0, x[vn, vc, row, column] > best[0])
                inside = spec.inside(row, column)
                with (
                    T.If(inside if inside is not True else tirx.const(True, "bool")),
                    T.Then(),
                    T.If(first),
                    T.Then(),
                ):
                    T.buffer_store(best, x[vn, vc, row, column], [0])
                    T.buffer_store(place, tirx.Cast("int32", row), [0])
                    T.buffer_store(place, tirx.Cast("int32", column), [1])
            target = [vn, vc, place[0], place[1]]
            T.buffer_store(dx, dx[tuple(target)] + dy[vn, vc, vi, vj], target)

    args = [Arg("x", spec.x_shape), Arg("dy", spec.y_shape), Arg("dx", spec.x_shape, role="out")]
    return make_kernel("max_pool2d_grad", spec, args, body, macs=0)


def avg_pool2d_grad(spec: PoolSpec) -> tirx.PrimFunc:
    """Each window spreads dy evenly over the elements that it averaged. Arguments: dy, dx."""

    def body(dy: Any, dx: Any) -> None:
        with T.grid(*spec.x_shape) as (n, c, i, j), T.sblock("zero"):
            at = T.axis.remap("SSSS", [n, c, i, j])
            T.buffer_store(dx, f32(0.0), list(at))
        with T.grid(*spec.y_shape, *spec.kernel) as (n, c, i, j, kh, kw), T.sblock("avg_pool2d_grad"):
            vn, vc, vi, vj, vh, vw = T.axis.remap("SSSSRR", [n, c, i, j, kh, kw])
            row, column = spec.position(vi, vj, vh, vw)
            share = dy[vn, vc, vi, vj] / _window_size(spec, vi, vj)
            inside = spec.inside(row, column)
            with T.If(inside if inside is not True else tirx.const(True, "bool")), T.Then():
                T.buffer_store(dx, dx[vn, vc, row, column] + share, [vn, vc, row, column])

    args = [Arg("dy", spec.y_shape), Arg("dx", spec.x_shape, role="out")]
    return make_kernel("avg_pool2d_grad", spec, args, body, macs=0)


def adaptive_avg_pool2d_grad(x_shape: tuple[int, int, int], out: tuple[int, int]) -> tirx.PrimFunc:
    """Windows of torch's adaptive pooling: rows ⌊i·h/oh⌋ to ⌈(i+1)·h/oh⌉. Arguments: dy[1, c, oh, ow], dx[1, c, h, w]."""
    channels, *extents = x_shape
    longest = [-(-size // count) + (size % count != 0) for size, count in zip(extents, out, strict=True)]

    def window(i: Any, size: int, count: int) -> tuple[Any, Any]:
        start = tirx.floordiv(i * size, count)
        return start, tirx.floordiv((i + 1) * size + count - 1, count) - start

    def body(dy: Any, dx: Any) -> None:
        with T.grid(1, *x_shape) as (n, c, i, j), T.sblock("zero"):
            at = T.axis.remap("SSSS", [n, c, i, j])
            T.buffer_store(dx, f32(0.0), list(at))
        with (
            T.grid(1, channels, *out, *longest) as (n, c, i, j, kh, kw),
            T.sblock("adaptive_avg_pool2d_grad"),
        ):
            vn, vc, vi, vj, vh, vw = T.axis.remap("SSRRRR", [n, c, i, j, kh, kw])
            (top, rows), (left, columns) = window(vi, extents[0], out[0]), window(vj, extents[1], out[1])
            with T.If(tirx.all(vh < rows, vw < columns)), T.Then():
                at = [vn, vc, top + vh, left + vw]
                share = dy[vn, vc, vi, vj] / tirx.Cast("float32", rows * columns)
                T.buffer_store(dx, dx[tuple(at)] + share, at)

    args = [Arg("dy", (1, channels, *out)), Arg("dx", (1, *x_shape), role="out")]
    spec = {"x_shape": list(x_shape), "out": list(out)}
    return make_kernel("adaptive_avg_pool2d_grad", spec, args, body, macs=0)


def _window_size(spec: PoolSpec, i: Any, j: Any) -> Any:
    """How many elements the window of output (i, j) averaged, as float32."""
    top, left, bottom, right = spec.padding
    if not any(spec.padding) and not spec._overhangs():
        return f32(spec.kernel[0] * spec.kernel[1])
    pads = (top, bottom, left, right) if spec.count_include_pad else (0, 0, 0, 0)
    sizes = []
    for index, kernel, stride, step, begin, low, high, extent in (
        (i, spec.kernel[0], spec.stride[0], spec.dilation[0], top, pads[0], pads[1], spec.height),
        (j, spec.kernel[1], spec.stride[1], spec.dilation[1], left, pads[2], pads[3], spec.width),
    ):
        start = index * stride - begin
        if step == 1:
            sizes.append(tirx.min(start + kernel, extent + high) - tirx.max(start, 0 - low))
            continue
        first = tirx.floordiv(tirx.max(0 - low - start, 0) + (step - 1), step)  # taps, not elements
        last = tirx.floordiv(tirx.min(start + step * (kernel - 1), extent + high - 1) - start, step)
        sizes.append(last - first + 1)
    return tirx.Cast("float32", sizes[0] * sizes[1])
