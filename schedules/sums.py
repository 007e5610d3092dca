"""Any other kernel of ours that sums in one block and uses the sums in a second one: sums are local variables, a few at a time."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError

from tvm_tinytrain.schedules.blocks import block_names, extents, kind_of, sum_in_registers, tile

RESULTS = 4
"""Results whose sums run side by side, so that no addition waits for the one before it."""
STEPS = 4
"""Terms of each sum in the loop's body, where the sum is long enough."""
LONG = 16


def sums(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Moves the sum to where it is used."""
    kind = kind_of(func)
    schedule = Schedule(func)
    names = block_names(schedule)
    if kind is None or len(names) != 2 or names[0] != kind:
        return None
    main, consumer = (schedule.get_sblock(name) for name in names)
    sizes = extents(schedule, schedule.get_loops(consumer))
    steps = extents(schedule, schedule.get_loops(main))[len(sizes) :]
    if not sizes or not steps:
        return None
    try:
        outer, inner = tile(schedule, consumer, [*[1] * (len(sizes) - 1), min(RESULTS, sizes[-1])])
        unrolled = [STEPS] if steps[-1] >= LONG else []
        sum_in_registers(schedule, main, outer[-1], tile_loops=len(sizes), unrolled_sums=unrolled)
    except ScheduleError:  # the first block is no sum, or the second one needs more of it than one element
        return None
    for loop in inner:
        schedule.unroll(loop)
    return schedule
