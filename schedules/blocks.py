"""What rules share: reading a kernel's kind and parameters, tiling a block, keeping sums in registers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError
from tvm.s_tir.schedule import LoopRV, SBlockRV

PIECES = "tt.pieces"
"""Annotation of loops over tiles: the first and last tiles may become statements of their own (passes.split_loops)."""


def kind_of(func: tirx.PrimFunc) -> str | None:
    """The kernel's kind from its attribute ``tt.kernel``, None for a kernel that TVM made."""
    return str(func.attrs["tt.kernel"]) if "tt.kernel" in func.attrs else None


def spec_of(func: tirx.PrimFunc) -> dict[str, Any]:
    """The kernel's parameters from its attribute ``tt.spec``."""
    spec: dict[str, Any] = json.loads(str(func.attrs["tt.spec"]))
    return spec


def describe(func: tirx.PrimFunc) -> str:
    """A kernel's kind and size for people."""
    spec = spec_of(func)
    sizes = [spec.get(k) for k in ("in_channels", "out_channels", "height", "width")]
    if None in sizes:
        sizes = [spec.get(k) for k in ("rows", "in_features", "out_features")]
    return str(kind_of(func)) + "".join(f" {s}" for s in sizes if s is not None)


def block_names(schedule: Schedule) -> list[str]:
    """Names of all blocks below the root; none where the kernel is one block without loops."""
    try:
        root = schedule.get_sblock("root")
    except ScheduleError:
        return []
    return [schedule.get(b).name_hint for b in schedule.get_child_blocks(root)]


def extents(schedule: Schedule, loops: Sequence[LoopRV]) -> list[int]:
    """Trip counts of loops."""
    return [int(schedule.get(loop).extent) for loop in loops]


def tile(schedule: Schedule, block: SBlockRV, factors: Sequence[Any]) -> tuple[list[LoopRV], list[LoopRV]]:
    """Splits each loop of ``block`` by its factor and brings the tile's loops inside: (loops over tiles, loops in a tile).

    A factor that does not divide its loop leaves a smaller tile at the end.
    """
    outer, inner = [], []
    for loop, factor in zip(schedule.get_loops(block), factors, strict=True):
        first, second = schedule.split(loop, [None, factor])
        schedule.annotate(first, PIECES, 1)
        outer.append(first)
        inner.append(second)
    schedule.reorder(*outer, *inner)
    return outer, inner


def sum_in_registers(
    schedule: Schedule,
    main: SBlockRV,
    at: LoopRV,
    *,
    tile_loops: int,
    unrolled_sums: Sequence[Any] = (),
    rows_first: bool = False,
    lanes: int = 1,
) -> None:
    """Computes the sums of one tile at loop ``at`` in local variables: sums outside, the tile inside, unrolled.

    ``unrolled_sums`` gives for each reduction loop, from the last one backwards, how many of its iterations stand in the loop's body;
    None: all. With ``rows_first`` the body of the last of these goes through the tile row by row, for the tile's last axis only.
    ``lanes`` elements of the tile's last axis are one vector.
    """
    schedule.compute_at(main, at, preserve_unit_loops=True)
    schedule.set_scope(main, 0, "local")
    own = own_loops(schedule, main, at)
    depth = len(schedule.get_loops(main)) - len(own)
    inside, sums = own[:tile_loops], own[tile_loops:]
    bodies: list[LoopRV] = []
    parts: list[LoopRV] = []
    for factor in unrolled_sums:
        loop = sums.pop()
        if factor is not None:
            part, loop = schedule.split(loop, [None, factor])
            schedule.annotate(part, PIECES, 1)
            parts.insert(0, part)
        bodies.insert(0, loop)
    sums += parts
    if rows_first and bodies:
        order = [*bodies[:-1], *inside[:-1], bodies[-1], inside[-1]]
    else:
        order = [*bodies, *inside]
    schedule.reorder(*sums, *order)
    if lanes > 1:
        last, vector = schedule.split(order.pop(), [None, lanes])
        order.append(last)
        schedule.vectorize(vector)
    init = schedule.decompose_reduction(main, [*sums, *order][0])
    for loop in order:
        schedule.unroll(loop)
    *loops, vector = schedule.get_loops(init)[depth:]
    for loop in loops:
        schedule.unroll(loop)
    (schedule.vectorize if lanes > 1 else schedule.unroll)(vector)


def own_loops(schedule: Schedule, main: SBlockRV, at: LoopRV) -> list[LoopRV]:
    """The loops of ``main`` inside of loop ``at``."""
    loops = schedule.get_loops(main)
    target = schedule.get_sref(at)
    for index, loop in enumerate(loops):
        if schedule.get_sref(loop).same_as(target):
            return loops[index + 1 :]
    raise ValueError("the block is not below the loop")
