"""Any other kernel of ours that sums in one block and uses the sums in a second one: the sum of each result is a local variable."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError

from tvm_tinytrain.schedules.blocks import block_names, kind_of, sum_in_registers, tile


def sums(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Moves the sum to where it is used; one result at a time."""
    kind = kind_of(func)
    schedule = Schedule(func)
    names = block_names(schedule)
    if kind is None or len(names) != 2 or names[0] != kind:
        return None
    main, consumer = (schedule.get_sblock(name) for name in names)
    rank = len(schedule.get_loops(consumer))
    if rank == 0:
        return None
    try:
        outer, _ = tile(schedule, consumer, [1] * rank)
        sum_in_registers(schedule, main, outer[-1], tile_loops=rank)
    except ScheduleError:  # the first block is no sum, or the second one needs more of it than one element
        return None
    return schedule
