"""One axis of a convolution: which input a tap meets, and when that lies outside.

Padding is not made of zeros in memory here: a tap that would read outside is left out. The kernels put the vertical condition around
their statement, where it becomes the bounds of the loop over the window's rows, and the horizontal one into the value, where it is
known once the columns of a tile are unrolled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import all_of, f32
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec


@dataclass(frozen=True)
class Axis:
    """Input of ``size`` elements → ``out_size`` outputs; ``before`` elements of padding in front of the first."""

    size: int
    out_size: int
    kernel: int
    stride: int
    dilation: int
    before: int

    def input(self, out: Any, tap: Any) -> Any:
        """The input element under tap ``tap`` of output ``out``."""
        return out * self.stride + tap * self.dilation - self.before

    def reads_inside(self, out: Any, tap: Any) -> Any:
        """Whether that element exists; Python's True where it always does."""
        place = self.input(out, tap)
        last = self.input(self.out_size - 1, self.kernel - 1)
        return all_of(
            True if self.before <= 0 else place >= 0,
            True if last < self.size else place < self.size,
        )

    @property
    def gathers(self) -> bool:
        """Whether the taps that reach one input element are every ``stride``-th one, so that a sum over them can be written down."""
        return self.stride == 1 or self.dilation == 1

    @property
    def steps(self) -> int:
        """The most taps that reach one input element."""
        return -(-self.kernel // self.stride)

    def tap(self, place: Any, step: Any) -> Any:
        """The ``step``-th tap that reaches input element ``place``."""
        if self.stride == 1:
            return step
        return step * self.stride + (place + self.before) % self.stride

    def output(self, place: Any, step: Any) -> Any:
        """The output that it belongs to."""
        if self.stride == 1:
            return place + self.before - step * self.dilation
        return (place + self.before) // self.stride - step

    def writes_inside(self, place: Any, step: Any) -> Any:
        """Whether there are such a tap and such an output; Python's True where there always are."""
        out = self.output(place, step)
        phases = [(p + self.before) % self.stride for p in range(min(self.size, self.stride))]
        taps = [-(-(self.kernel - p) // self.stride) for p in phases]
        phase = (place + self.before) % self.stride
        least = min(self.output(p, self.steps - 1) for p in range(min(self.size, self.stride)))
        most = self.output(self.size - 1, 0)
        return all_of(
            True
            if min(taps) == self.steps
            else step < (self.kernel + self.stride - 1 - phase) // self.stride,
            True if least >= 0 else out >= 0,
            True if most < self.out_size else out < self.out_size,
        )


def axes_of(spec: Conv2DSpec) -> tuple[Axis, Axis]:
    """The vertical and the horizontal axis of a convolution."""
    return (
        Axis(spec.height, spec.out_height, spec.kernel[0], spec.stride[0], spec.dilation[0], spec.padding[0]),
        Axis(spec.width, spec.out_width, spec.kernel[1], spec.stride[1], spec.dilation[1], spec.padding[1]),
    )


@contextmanager
def only_if(condition: Any) -> Iterator[None]:
    """Emits the statements inside under a condition; Python's True means no condition."""
    if condition is True:
        yield
        return
    with T.If(condition), T.Then():
        yield


def or_zero(condition: Any, value: Any) -> Any:
    """The float32 ``value``, or zero where the condition does not hold."""
    return value if condition is True else tirx.if_then_else(condition, value, f32(0.0))
