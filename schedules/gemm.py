"""Products of matrices: 1×1 convolutions, linear layers, and their gradients, with a tile of sums in registers."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.schedules.blocks import block_names, extents, kind_of, sum_in_registers, tile
from tvm_tinytrain.schedules.dots import KINDS as DOT_PRODUCTS
from tvm_tinytrain.schedules.dots import dot_products
from tvm_tinytrain.schedules.knobs import DEFAULTS, Knobs, up_to
from tvm_tinytrain.schedules.tiles import best_tile, most_sums
from tvm_tinytrain.schedules.vectors import (
    best_vector_tile,
    lanes_of,
    packed_lanes,
    registers_of,
    unroll_vectors,
)

_KINDS = frozenset(
    (
        "conv2d", "conv2d_input_grad", "conv2d_weight_grad", "conv2d_rows", "conv2d_input_grad_rows", "linear", "linear_input_grad",
        "linear_weight_grad", "linear_rows", "linear_input_grad_rows", "matmul",
    )
)  # fmt: skip
_CONTIGUOUS = frozenset(
    ("conv2d", "conv2d_input_grad", "conv2d_rows", "conv2d_input_grad_rows", "linear_input_grad")
)
"""Kinds whose operands lie side by side along the last axis of the result."""
_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
_UNROLLED = (1, 2, 4)


def gemm(func: tirx.PrimFunc, target: tvm.target.Target, knobs: Knobs = DEFAULTS) -> Schedule | None:
    """Tiles the last two axes of the result; the reduction runs outside of the tile, one element of each operand per step.

    Knobs: ``rows`` and ``columns`` of the tile; ``unroll``, steps of the reduction in the loop's body.
    """
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
    parts = lanes_of(target, steps[-1])
    if kind in DOT_PRODUCTS and len(sizes) == len(steps) + 1 == 2 and parts > 1 and steps[-1] % parts == 0:
        return _dot_products(schedule, sizes, parts, registers_of(target), knobs)
    lanes = lanes_of(target, sizes[-1]) if kind in _CONTIGUOUS else 1
    default = best_tile(sizes[-2], sizes[-1], steps[-1], lanes=packed_lanes(target))
    if lanes > 1:
        default = best_vector_tile(sizes[-2], sizes[-1], lanes, registers_of(target))
    rows = knobs.choose("rows", up_to(sizes[-2], _SIZES), default[0])
    sizes_of_rows = [lanes * n for n in range(1, 9)] if lanes > 1 else _SIZES
    columns = knobs.choose(
        "columns", [c for c in up_to(sizes[-1], sizes_of_rows) if c % lanes == 0], default[1]
    )
    if steps[-1] > 1:
        knobs.product_up_to(("rows", "columns"), most_sums(target, lanes))
    outer, inner = tile(schedule, consumer, [*[1] * (len(sizes) - 2), rows, columns])
    unroll = knobs.choose("unroll", [u for u in _UNROLLED if steps[-1] % u == 0], 1)
    unrolled = [unroll] if unroll > 1 else []
    sum_in_registers(schedule, main, outer[-1], tile_loops=len(sizes), unrolled_sums=unrolled, lanes=lanes)
    unroll_vectors(schedule, inner, lanes)
    return schedule


def _dot_products(schedule: Schedule, sizes: list[int], lanes: int, registers: int, knobs: Knobs) -> Schedule:
    """As `gemm`, with vectors along the sum."""
    main, consumer = (schedule.get_sblock(name) for name in block_names(schedule))
    default = best_vector_tile(sizes[0], sizes[1] * lanes, lanes, registers, broadcast=False)
    rows = knobs.choose("rows", up_to(sizes[0], _SIZES), default[0])
    columns = knobs.choose("columns", up_to(sizes[1], _SIZES), default[1] // lanes)
    for loop in dot_products(schedule, main, consumer, rows, columns, lanes):
        schedule.unroll(loop)
    return schedule
