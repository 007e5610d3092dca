"""Products of matrices whose operands lie side by side along the sum: each sum runs in as many parts as a vector has elements."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvm_tinytrain.schedules.blocks import own_loops, tile

KINDS = frozenset(("conv2d_weight_grad", "linear", "linear_rows"))
"""Kinds of which this holds, where they are a product of two matrices."""


def dot_products(
    schedule: Schedule, main: SBlockRV, consumer: SBlockRV, rows: int, columns: int, lanes: int
) -> list[LoopRV]:
    """Sums vectors of ``lanes`` parts for a tile of [rows, columns] results, then their parts; returns the tile's loops.

    The parts are added in order after the sum, so the result rounds otherwise than a sum from left to right.
    """
    _, part = schedule.split(schedule.get_loops(main)[-1], [None, lanes])
    parts = schedule.rfactor(part, 2)
    outer, inner = tile(schedule, consumer, [rows, columns])
    schedule.compute_at(main, outer[-1], preserve_unit_loops=True)
    schedule.compute_at(parts, outer[-1], preserve_unit_loops=True)
    for block in (parts, main):
        schedule.set_scope(block, 0, "local")
    vector, row, column, steps = own_loops(schedule, parts, outer[-1])
    schedule.reorder(steps, row, column, vector)
    schedule.vectorize(vector)
    _start_apart(schedule, parts, steps, outer[-1], vectors=True)
    for loop in (row, column):
        schedule.unroll(loop)
    loops = own_loops(schedule, main, outer[-1])
    _start_apart(schedule, main, loops[0], outer[-1], vectors=False)
    for loop in loops:
        schedule.unroll(loop)
    return inner


def _start_apart(
    schedule: Schedule, block: SBlockRV, at: LoopRV, tile_loop: LoopRV, *, vectors: bool
) -> None:
    """The sums' first values in unrolled loops of their own."""
    init = schedule.decompose_reduction(block, at)
    loops = own_loops(schedule, init, tile_loop)
    if vectors:
        schedule.vectorize(loops.pop())
    for loop in loops:
        schedule.unroll(loop)
