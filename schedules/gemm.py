"""Products of matrices: 1×1 convolutions, linear layers, and their gradients, with a tile of sums in registers."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.schedules.blocks import block_names, extents, kind_of, sum_in_registers, tile
from tvm_tinytrain.schedules.tiles import best_tile

_KINDS = frozenset(
    (
        "conv2d", "conv2d_input_grad", "conv2d_weight_grad", "conv2d_rows", "conv2d_input_grad_rows", "linear", "linear_input_grad",
        "linear_weight_grad", "linear_rows", "linear_input_grad_rows", "matmul",
    )
)  # fmt: skip


def gemm(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Tiles the last two axes of the result; the reduction runs outside of the tile, one element of each operand per step."""
    kind = kind_of(func)
    if kind not in _KINDS:
        return None
    schedule = Schedule(func)
    names = block_names(schedule)
    if len(names) != 2 or names[0] != kind:
        return None
    main, consumer = (schedule.get_sblock(name) for name in names)
    sizes = extents(schedule, schedule.get_loops(consumer))
    steps = extents(schedule, schedule.get_loops(main))[len(sizes) :]
    products = len(sizes) == 2 or (kind == "matmul" and len(sizes) == 3)
    if not products or not steps:
        return None
    factors = best_tile(sizes[-2], sizes[-1], steps[-1])
    outer, inner = tile(schedule, consumer, [*[1] * (len(sizes) - 2), *factors])
    sum_in_registers(schedule, main, outer[-1], tile_loops=len(sizes))
    for loop in inner:
        schedule.unroll(loop)
    return schedule
