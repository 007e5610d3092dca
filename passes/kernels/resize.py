"""Upsampling of the last two axes of x[planes, height, width]: nearest by whole factors, bilinear to any size; and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel


@dataclass(frozen=True)
class UpsampleSpec:
    """x[planes, height, width] → y[planes, height · factors[0], width · factors[1]]: each element becomes a block."""

    planes: int
    height: int
    width: int
    factors: tuple[int, int]

    @staticmethod
    def from_dict(values: dict[str, Any]) -> UpsampleSpec:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip; other keys are ignored."""
        down, across = values["factors"]
        return UpsampleSpec(values["planes"], values["height"], values["width"], (down, across))

    @property
    def x_shape(self) -> tuple[int, int, int]:
        """[planes, height, width]."""
        return (self.planes, self.height, self.width)

    @property
    def y_shape(self) -> tuple[int, int, int]:
        """[planes, height · factors[0], width · factors[1]]."""
        return (self.planes, self.height * self.factors[0], self.width * self.factors[1])


def upsample(spec: UpsampleSpec) -> tirx.PrimFunc:
    """y[p, i, j] = x[p, i // fh, j // fw]. Arguments: x, y."""

    def body(x: Any, y: Any) -> None:
        with T.grid(*spec.y_shape) as (p, i, j), T.sblock("upsample"):
            vp, vi, vj = T.axis.remap("SSS", [p, i, j])
            source = x[vp, tirx.floordiv(vi, spec.factors[0]), tirx.floordiv(vj, spec.factors[1])]
            T.buffer_store(y, source, [vp, vi, vj])

    args = [Arg("x", spec.x_shape), Arg("y", spec.y_shape, role="out")]
    return make_kernel("upsample", spec, args, body, macs=0)


def upsample_grad(spec: UpsampleSpec) -> tirx.PrimFunc:
    """dx = the sum of dy over each block. Arguments: dy, dx."""

    def body(dy: Any, dx: Any) -> None:
        down, across = spec.factors
        with T.grid(*spec.x_shape, down, across) as (p, i, j, u, v), T.sblock("upsample_grad"):
            vp, vi, vj, vu, vv = T.axis.remap("SSSRR", [p, i, j, u, v])
            with T.init():
                T.buffer_store(dx, f32(0.0), [vp, vi, vj])
            T.buffer_store(dx, dx[vp, vi, vj] + dy[vp, vi * down + vu, vj * across + vv], [vp, vi, vj])

    args = [Arg("dy", spec.y_shape), Arg("dx", spec.x_shape, role="out")]
    return make_kernel("upsample_grad", spec, args, body, macs=0)


@dataclass(frozen=True)
class BilinearSpec:
    """x[planes, height, width] → y[planes, out_height, out_width] with weights linear in the distance, as torch.

    ``align_corners`` maps the first and last rows onto each other; otherwise pixels are squares (half-pixel centres).
    """

    planes: int
    height: int
    width: int
    out_height: int
    out_width: int
    align_corners: bool = False

    @staticmethod
    def from_dict(values: dict[str, Any]) -> BilinearSpec:
        """Inverse of ``dataclasses.asdict``; other keys are ignored."""
        return BilinearSpec(**{k: values[k] for k in BilinearSpec.__dataclass_fields__})

    @property
    def x_shape(self) -> tuple[int, int, int]:
        """[planes, height, width]."""
        return (self.planes, self.height, self.width)

    @property
    def y_shape(self) -> tuple[int, int, int]:
        """[planes, out_height, out_width]."""
        return (self.planes, self.out_height, self.out_width)

    def taps(self, position: Any, size: int, out_size: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """The two input positions that output ``position`` reads along one axis, and their weights.

        The numerator is a whole number over a constant denominator, so that the positions are exact integers.
        """
        if self.align_corners:
            numerator, denominator = position * (size - 1), max(out_size - 1, 1)
        else:  # (p + ½) · size/out − ½
            numerator, denominator = (2 * position + 1) * size - out_size, 2 * out_size
            numerator = tirx.max(numerator, 0)
        low = tirx.floordiv(numerator, denominator)
        high = tirx.min(low + 1, size - 1)
        weight = tirx.Cast("float32", tirx.floormod(numerator, denominator)) * f32(1.0 / denominator)
        return (low, high), (f32(1.0) - weight, weight)


def bilinear(spec: BilinearSpec) -> tirx.PrimFunc:
    """The four-tap mean. Arguments: x, y."""

    def body(x: Any, y: Any) -> None:
        with T.grid(*spec.y_shape) as (p, i, j), T.sblock("bilinear"):
            vp, vi, vj = T.axis.remap("SSS", [p, i, j])
            rows, row_weights = spec.taps(vi, spec.height, spec.out_height)
            columns, column_weights = spec.taps(vj, spec.width, spec.out_width)
            lines = [
                sum(x[vp, row, c] * w for c, w in zip(columns, column_weights, strict=True)) for row in rows
            ]
            T.buffer_store(y, lines[0] * row_weights[0] + lines[1] * row_weights[1], [vp, vi, vj])

    args = [Arg("x", spec.x_shape), Arg("y", spec.y_shape, role="out")]
    return make_kernel("bilinear", spec, args, body, macs=0)


def bilinear_grad(spec: BilinearSpec) -> tirx.PrimFunc:
    """Each dy goes to the four elements that its output read, with their weights. Arguments: dy, dx."""

    def body(dy: Any, dx: Any) -> None:
        with T.grid(*spec.x_shape) as (p, i, j), T.sblock("zero"):
            at = T.axis.remap("SSS", [p, i, j])
            T.buffer_store(dx, f32(0.0), list(at))
        with (
            T.grid(spec.planes, 1, spec.out_height, spec.out_width) as (p, z, i, j),
            T.sblock("bilinear_grad"),
        ):
            vp, _, vi, vj = T.axis.remap("SRRR", [p, z, i, j])
            rows, row_weights = spec.taps(vi, spec.height, spec.out_height)
            columns, column_weights = spec.taps(vj, spec.width, spec.out_width)
            for row, row_weight in zip(rows, row_weights, strict=True):
                for column, weight in zip(columns, column_weights, strict=True):
                    share = dy[vp, vi, vj] * (row_weight * weight)
                    T.buffer_store(dx, dx[vp, row, column] + share, [vp, row, column])

    args = [Arg("dy", spec.y_shape), Arg("dx", spec.x_shape, role="out")]
    return make_kernel("bilinear_grad", spec, args, body, macs=0)
