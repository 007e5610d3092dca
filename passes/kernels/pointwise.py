"""1×1 convolutions with stride one: products of a weight matrix and a matrix of pixels.

Rows and columns of the image are one axis here, because neighbouring pixels of different rows are as good as those of one row: any
tile of pixels then divides more shapes. The bodies belong to the kernels of `conv2d` and `conv2d_grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import axes, f32, intermediate, loops
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec

Body = Callable[..., None]


def forward(spec: Conv2DSpec, start: Callable[[Any, Any], Any], end: Callable[[Any], Any]) -> Body:
    """y[o, p] = end(start(o) + Σ_c x[c, p] · w[o, c]); ``start`` gets the buffers after w and the output channel."""
    pixels = spec.height * spec.width

    def body(x: Any, w: Any, *rest: Any) -> None:
        acc = intermediate("acc", (spec.out_channels, pixels))
        with loops("o p c", spec.out_channels, pixels, spec.in_channels) as found, T.sblock("conv2d"):
            o, p, c = axes("SSR", found)
            with T.init():
                T.buffer_store(acc, start(rest, o), [o, p])
            T.buffer_store(acc, acc[o, p] + x[0, c, *pixel(spec, p)] * w[o, c, 0, 0], [o, p])
        with loops("o p", spec.out_channels, pixels) as found, T.sblock("epilogue"):
            o, p = axes("SS", found)
            T.buffer_store(rest[-1], end(acc[o, p]), [0, o, *pixel(spec, p)])

    return body


def input_grad(spec: Conv2DSpec) -> Body:
    """dx[c, p] = Σ_o dy[o, p] · w[o, c]."""
    pixels = spec.height * spec.width

    def body(dy: Any, w: Any, dx: Any) -> None:
        acc = intermediate("acc", (spec.in_channels, pixels))
        with (
            loops("c p o", spec.in_channels, pixels, spec.out_channels) as found,
            T.sblock("conv2d_input_grad"),
        ):
            c, p, o = axes("SSR", found)
            with T.init():
                T.buffer_store(acc, f32(0.0), [c, p])
            T.buffer_store(acc, acc[c, p] + dy[0, o, *pixel(spec, p)] * w[o, c, 0, 0], [c, p])
        with loops("c p", spec.in_channels, pixels) as found, T.sblock("epilogue"):
            c, p = axes("SS", found)
            T.buffer_store(dx, acc[c, p], [0, c, *pixel(spec, p)])

    return body


def weight_grad(
    spec: Conv2DSpec,
    compact: Sequence[int],
    x: Any,
    dy: Any,
    row: Callable[[Any], Any],
    column: Callable[[Any], Any],
    sink: Callable[[Any, Any, Any], None],
) -> None:
    """Emits g[r, c] = Σ_p dy[row(r), p] · x[column(c), p] for a gradient of shape ``compact``, handed to ``sink(r, c, g)``."""
    pixels = spec.height * spec.width
    acc = intermediate("acc", (compact[0], compact[1]))
    with loops("r c p", compact[0], compact[1], pixels) as found, T.sblock("conv2d_weight_grad"):
        r, c, p = axes("SSR", found)
        with T.init():
            T.buffer_store(acc, f32(0.0), [r, c])
        tap = dy[0, row(r), *pixel(spec, p)] * x[0, column(c), *pixel(spec, p)]
        T.buffer_store(acc, acc[r, c] + tap, [r, c])
    with loops("r c", compact[0], compact[1]) as found, T.sblock("sink"):
        r, c = axes("SS", found)
        sink(r, c, acc[r, c])


def pixel(spec: Conv2DSpec, place: Any) -> tuple[Any, Any]:
    """Row and column of a pixel."""
    if spec.width == 1:
        return place, 0
    return place // spec.width, place % spec.width
