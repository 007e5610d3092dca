"""Choosing element by element by a comparison; no tensor of truth values exists, so that none has to be kept."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel, remap_all

Side = tuple[int, ...] | float
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "equal": operator.eq,
    "not_equal": operator.ne,
}


@dataclass(frozen=True)
class SelectSpec:
    """y[shape] = (left <comparison> right) ? a : b. Each side is a float32 tensor's shape, broadcast to ``shape``, or a number."""

    shape: tuple[int, ...]
    comparison: str
    left: Side
    right: Side
    a: Side
    b: Side

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SelectSpec:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip; other keys are ignored."""
        sides = (tuple(v) if isinstance(v := values[k], list) else v for k in ("left", "right", "a", "b"))
        return SelectSpec(tuple(values["shape"]), values["comparison"], *sides)

    def tensors(self) -> list[str]:
        """The sides that are tensors, in order."""
        return [n for n in ("left", "right", "a", "b") if isinstance(getattr(self, n), tuple)]


def select(spec: SelectSpec) -> tirx.PrimFunc:
    """Arguments: left, right, a, b (those that are tensors), y."""

    def body(*bufs: Any) -> None:
        y = bufs[-1]
        with T.grid(*spec.shape) as loops, T.sblock("select"):
            at = remap_all(loops, len(spec.shape))
            left, right, a, b = _read(spec, bufs, at)
            T.buffer_store(y, tirx.Select(COMPARISONS[spec.comparison](left, right), a, b), at)

    args = [Arg(n, getattr(spec, n)) for n in spec.tensors()] + [Arg("y", spec.shape, role="out")]
    return make_kernel("select", spec, args, body, size=math.prod(spec.shape), macs=0)


def _read(spec: SelectSpec, bufs: tuple[Any, ...], at: list[Any]) -> Iterator[Any]:
    """The four sides at position ``at``."""
    buffers = iter(bufs)
    for side in (spec.left, spec.right, spec.a, spec.b):
        if not isinstance(side, tuple):
            yield f32(side)
            continue
        where = zip(at[len(at) - len(side) :], side, strict=True)
        yield next(buffers)[tuple(0 if d == 1 else v for v, d in where)]
