"""Products of matrices whose operands lie side by side along the sum: each sum runs in as many parts as a vector has elements."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from tvm_tinytrain.schedules.blocks import own_loops, tile

KINDS = frozenset(("conv2d_weight_grad", "linear", "linear_rows"))
"""Kinds of which this holds, where they are a product of two matrices."""
PARTS = 4
"""So many parts of a sum are added one after the other."""


def dot_products(
    schedule: Schedule, main: SBlockRV, consumer: SBlockRV, rows: int, columns: int, lanes: int
) -> list[LoopRV]:
    """Sums vectors of ``lanes`` parts for a tile of [rows, columns] results, then their parts; returns the tile's loops.

    Of eight parts the upper four are added to the lower four as vectors; four are added in order. The result rounds otherwise than a
    sum from left to right. Eight in order, each taken out of its vector, were a seventh of MCUNet's training step on x86-64.
    """
    halves = [lanes // PARTS] if lanes > PARTS else []
    *_, part = schedule.split(schedule.get_loops(main)[-1], [None, *halves, PARTS])
    stages = [main, schedule.rfactor(part, 2)]
    if halves:
        stages.append(schedule.rfactor(schedule.get_loops(stages[-1])[-2], 2))
    outer, inner = tile(schedule, consumer, [rows, columns])
    for block in stages:
        schedule.compute_at(block, outer[-1], preserve_unit_loops=True)
        schedule.set_scope(block, 0, "local")
    *vector, row, column, steps = own_loops(schedule, stages[-1], outer[-1])
    _sum_vectors(schedule, stages[-1], [steps, row, column], vector, outer[-1])
    if halves:
        half, part, row, column = own_loops(schedule, stages[1], outer[-1])
        _sum_vectors(schedule, stages[1], [half, row, column], [part], outer[-1])
        schedule.unroll(half)
    loops = own_loops(schedule, main, outer[-1])
    _start_apart(schedule, main, loops[0], outer[-1], vectors=False)
    for loop in loops:
        schedule.unroll(loop)
    return inner


def _sum_vectors(
    schedule: Schedule, block: SBlockRV, loops: list[LoopRV], vector: list[LoopRV], tile_loop: LoopRV
) -> None:
    """A sum over the first loop, of a tile of the two others, whose elements are vectors."""
    schedule.reorder(*loops, *vector)
    schedule.vectorize(schedule.fuse(*vector))
    _start_apart(schedule, block, loops[0], tile_loop, vectors=True)
    for loop in loops[1:]:
        schedule.unroll(loop)


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
