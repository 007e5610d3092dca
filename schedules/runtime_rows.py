"""Kernels over a number of rows that is known at run time only: the row loop is marked, never tiled.

The kernel is written for all of a layer's channels; the printer ends every loop with the annotation ``tt.rows`` at the argument
``rows`` instead. So the tile of sums lies in the other axes: pixels, input channels, taps.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvm_tinytrain.schedules.blocks import block_names, extents, kind_of, spec_of, sum_in_registers, tile

RUNTIME_ROWS = "tt.runtime_rows"
ROWS_LOOP = "tt.rows"
_TILE = 16
_WINDOW_TILE = 8
"""Sums of a tile. With a window there are conditions at the image's border, and 16 sums of them do not stay in registers."""
_LONGEST = 8
"""Most sums along one axis where the rows are summed over: two axes that share a tile load less for each product."""


def runtime_rows(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Schedules kernels that carry the attribute ``tt.runtime_rows``."""
    if RUNTIME_ROWS not in func.attrs:
        return None
    kind = str(kind_of(func))
    schedule = Schedule(func)
    names = block_names(schedule)
    if "gradient" in names:
        return _row_by_row(schedule, kind)
    last = next(name for name in ("epilogue", "sink", "crop") if name in names)
    consumer = schedule.get_sblock(last)
    if last == "crop" or kind == "apply_update":
        for name in names if kind == "apply_update" else [last]:
            _mark(schedule, schedule.get_loops(schedule.get_sblock(name))[0])
        return schedule
    sizes = extents(schedule, schedule.get_loops(consumer))
    main = schedule.get_sblock(kind)
    row_is_summed = kind.endswith("input_grad_rows") and not _depthwise(func)
    outer, inner = tile(schedule, consumer, _factors(kind, sizes, row_is_summed))
    sum_in_registers(schedule, main, outer[-1], tile_loops=len(sizes))
    if "pad" in names and _depthwise(func):  # one padded plane at a time
        schedule.compute_at(schedule.get_sblock("pad"), outer[0])
    for loop in inner:
        schedule.unroll(loop)
    # last, because compute_at makes the loops anew without their annotations
    _mark(schedule, _row_sum(schedule, main, len(outer)) if row_is_summed else outer[0])
    return schedule


def _row_by_row(schedule: Schedule, kind: str) -> Schedule:
    """A kernel whose outermost loop is the rows (`passes.kernels.row_update`): the sums of a tile of one row at a time."""
    consumer, main = schedule.get_sblock("gather"), schedule.get_sblock(kind)
    sizes = extents(schedule, schedule.get_loops(consumer))
    outer, inner = tile(schedule, consumer, _factors(kind, [1, *sizes], False)[1:])
    sum_in_registers(schedule, main, outer[-1], tile_loops=len(sizes))
    for loop in inner:
        schedule.unroll(loop)
    _mark(schedule, schedule.get_loops(schedule.get_sblock("gradient"))[0])
    return schedule


def _factors(kind: str, sizes: list[int], row_is_summed: bool) -> list[int]:
    """Up to 16 sums (8 with a window) in the last axes; one row at a time where the first axis is the rows."""
    factors, left = [1] * len(sizes), _WINDOW_TILE if len(sizes) == 3 else _TILE
    for axis in reversed(range(0 if row_is_summed else 1, len(sizes))):
        most = min(left, _LONGEST) if row_is_summed else left
        factors[axis] = max(d for d in range(1, max(1, most) + 1) if sizes[axis] % d == 0)
        left //= factors[axis]
    return factors


def _depthwise(func: tirx.PrimFunc) -> bool:
    return int(spec_of(func).get("groups", 1)) > 1


def _mark(schedule: Schedule, loop: LoopRV) -> None:
    schedule.annotate(loop, ROWS_LOOP, 1)


def _row_sum(schedule: Schedule, main: SBlockRV, outer: int) -> LoopRV:
    """The first reduction loop of ``main``, which runs over the rows."""
    return schedule.get_loops(main)[outer]
