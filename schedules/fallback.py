"""What no other rule took: intermediate values are computed where they are used, not stored."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError

from tvm_tinytrain.schedules.blocks import block_names, kind_of
from tvm_tinytrain.schedules.elementwise import widen


def fallback(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Inlines every elementwise producer of a kernel that TVM fused; our own kernels stay as written."""
    if kind_of(func) is not None:
        return None
    schedule = Schedule(func)
    for name in block_names(schedule):
        try:
            schedule.compute_inline(schedule.get_sblock(name))
        except ScheduleError:  # a reduction, an output, or a producer that is read in two ways: it stays
            continue
    widen(schedule)
    return schedule
