"""Moving elements by index: the gradient of slices, gathers along one axis and their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, all_of, f32, make_kernel, remap_all


def slice_grad(
    shape: tuple[int, ...], begin: tuple[int, ...], strides: tuple[int, ...], taken: tuple[int, ...]
) -> tirx.PrimFunc:
    """dx of ``shape`` is zero but for dx[begin + i·strides] = dy[i]. Arguments: dy of shape ``taken``, dx.

    It gathers, one store per element of dx, so that nothing is cleared first. Strides are positive.
    """

    def body(dy: Any, dx: Any) -> None:
        with T.grid(*shape) as loops, T.sblock("slice_grad"):
            at = remap_all(loops, len(shape))
            inside, source = [], []
            for v, size, first, step, count in zip(at, shape, begin, strides, taken, strict=True):
                offset = v - first if first else v
                inside.append(True if first == 0 else v >= first)
                inside.append(True if first + count * step >= size else v < first + count * step)
                inside.append(True if step == 1 else tirx.floormod(offset, step) == 0)
                source.append(offset if step == 1 else tirx.floordiv(offset, step))
            value, condition = dy[tuple(source)], all_of(*inside)
            value = value if condition is True else tirx.if_then_else(condition, value, f32(0.0))
            T.buffer_store(dx, value, at)

    args = [Arg("dy", taken), Arg("dx", shape, role="out")]
    spec = {"shape": list(shape), "begin": list(begin), "strides": list(strides)}
    return make_kernel("slice_grad", spec, args, body, macs=0)


@dataclass(frozen=True)
class GatherSpec:
    """x seen as [outer, size, inner] → y[outer, count, inner] with y[o, i, k] = x[o, index[i], k]."""

    outer: int
    size: int
    inner: int
    count: int

    @staticmethod
    def from_dict(values: dict[str, Any]) -> GatherSpec:
        """Inverse of ``dataclasses.asdict``; other keys are ignored."""
        return GatherSpec(*(values[k] for k in ("outer", "size", "inner", "count")))

    @property
    def x_shape(self) -> tuple[int, int, int]:
        """[outer, size, inner]."""
        return (self.outer, self.size, self.inner)

    @property
    def y_shape(self) -> tuple[int, int, int]:
        """[outer, count, inner]."""
        return (self.outer, self.count, self.inner)


def gather(spec: GatherSpec) -> tirx.PrimFunc:
    """Arguments: x[outer, size, inner], index[count] int32 in [0, size), y[outer, count, inner]."""

    def body(x: Any, index: Any, y: Any) -> None:
        with T.grid(*spec.y_shape) as (o, i, k), T.sblock("gather"):
            vo, vi, vk = T.axis.remap("SSS", [o, i, k])
            T.buffer_store(y, x[vo, index[vi], vk], [vo, vi, vk])

    args = [Arg("x", spec.x_shape), Arg("index", (spec.count,), "int32"), Arg("y", spec.y_shape, role="out")]
    return make_kernel("gather", spec, args, body, macs=0)


def gather_grad(spec: GatherSpec) -> tirx.PrimFunc:
    """dx[o, index[i], k] += dy[o, i, k]. Arguments: dy, index[count] int32, dx."""

    def body(dy: Any, index: Any, dx: Any) -> None:
        with T.grid(*spec.x_shape) as (o, s, k), T.sblock("zero"):
            at = T.axis.remap("SSS", [o, s, k])
            T.buffer_store(dx, f32(0.0), list(at))
        with T.grid(*spec.y_shape) as (o, i, k), T.sblock("gather_grad"):
            vo, vi, vk = T.axis.remap("SRS", [o, i, k])
            at = [vo, index[vi], vk]
            T.buffer_store(dx, dx[tuple(at)] + dy[vo, vi, vk], at)

    args = [
        Arg("dy", spec.y_shape),
        Arg("index", (spec.count,), "int32"),
        Arg("dx", spec.x_shape, role="out"),
    ]
    return make_kernel("gather_grad", spec, args, body, macs=0)
