"""Running sums along an axis, and the gradient of products over one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, axes, f32, loops, make_kernel


@dataclass(frozen=True)
class CumulativeSpec:
    """x seen as [outer, size, inner], in which things run along ``size``: from its end where ``reverse`` is set."""

    outer: int
    size: int
    inner: int
    reverse: bool = False
    exclusive: bool = False

    @staticmethod
    def from_dict(values: dict[str, Any]) -> CumulativeSpec:
        """Inverse of ``dataclasses.asdict``; other keys are ignored."""
        return CumulativeSpec(*(values[k] for k in ("outer", "size", "inner", "reverse", "exclusive")))

    @property
    def shape(self) -> tuple[int, int, int]:
        """[outer, size, inner]."""
        return (self.outer, self.size, self.inner)


def running_sum(spec: CumulativeSpec) -> tirx.PrimFunc:
    """y[o, i, k] = Σ x[o, j, k] over j ≤ i (``exclusive``: j < i), ``reverse``: over j ≥ i (j > i). Arguments: x, y.

    Each sum goes on from its neighbour's, in the order of the loop.
    """

    def body(x: Any, y: Any) -> None:
        with loops("o i k", *spec.shape) as found, T.sblock("running_sum"):
            o, i, k = axes("SRS", found)
            here, step = (spec.size - 1 - i, 1) if spec.reverse else (i, -1)
            taken = here + step if spec.exclusive else here
            before = tirx.if_then_else(i > 0, y[o, here + step, k], f32(0.0))
            added = tirx.if_then_else(i > 0, x[o, taken, k], f32(0.0)) if spec.exclusive else x[o, taken, k]
            T.buffer_store(y, before + added, [o, here, k])

    return make_kernel(
        "running_sum", spec, [Arg("x", spec.shape), Arg("y", spec.shape, role="out")], body, macs=0
    )


def product_grad(outer: int, size: int, inner: int) -> tirx.PrimFunc:
    """dx[o, i, k] = dy[o, k] · Π x[o, j, k] over j ≠ i: without a division, so that factors may be 0. Arguments: x, dy, dx."""
    shape = (outer, size, inner)

    def body(x: Any, dy: Any, dx: Any) -> None:
        with loops("o i k j", *shape, size) as found, T.sblock("product_grad"):
            o, i, k, j = axes("SSSR", found)
            with T.init():
                T.buffer_store(dx, dy[o, k], [o, i, k])
            T.buffer_store(dx, dx[o, i, k] * tirx.Select(j == i, f32(1.0), x[o, j, k]), [o, i, k])

    args = [Arg("x", shape), Arg("dy", (outer, inner)), Arg("dx", shape, role="out")]
    return make_kernel("product_grad", {"shape": list(shape)}, args, body, macs=0)
