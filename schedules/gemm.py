"""Products of matrices: 1×1 convolutions, linear layers, and their gradients, with a tile of sums in registers."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.schedules.blocks import block_names, extents, kind_of, sum_in_registers, tile
from tvm_tinytrain.schedules.tiles import best_tile

_CONSUMER = {
    "conv2d": "epilogue",
    "conv2d_input_grad": "epilogue",
    "conv2d_weight_grad": "sink",
    "linear": "epilogue",
    "linear_input_grad": "epilogue",
    "linear_weight_grad": "sink",
}


def gemm(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Tiles both axes of the result; the reduction runs outside of the tile, one element of each operand per step."""
    kind = kind_of(func)
    if kind not in _CONSUMER:
        return None
    schedule = Schedule(func)
    names = block_names(schedule)
    if names != [kind, _CONSUMER[kind]]:
        return None
    main, consumer = schedule.get_sblock(kind), schedule.get_sblock(_CONSUMER[kind])
    loops, sums = schedule.get_loops(consumer), schedule.get_loops(main)[2:]
    if len(loops) != 2 or len(sums) != 1:
        return None
    rows, columns = extents(schedule, loops)
    steps = extents(schedule, sums)[0]
    factors = best_tile(rows, columns, steps)
    outer, inner = tile(schedule, consumer, factors)
    sum_in_registers(schedule, main, outer[-1], tile_loops=2)
    for loop in inner:
        schedule.unroll(loop)
    return schedule
