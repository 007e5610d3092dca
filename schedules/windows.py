"""Convolutions with windows, dense and depthwise, and the gradients of their inputs: a tile of neighbouring outputs in registers."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.schedules.blocks import (
    PIECES,
    block_names,
    extents,
    kind_of,
    spec_of,
    sum_in_registers,
    tile,
)

DENSE = (4, 1, 4)
COPY3 = (1, 4, 4)
COPY = (1, 2, 8)
GUARD = (1, 1, 16)


def windows(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Forward convolutions and gathered input gradients.

    The sums over channels and window rows stay loops, the window's columns are unrolled with the tile, so that each input element is
    loaded once per window row. A depthwise kernel that copies planes does so channel by channel.
    """
    kind = kind_of(func)
    if kind not in ("conv2d", "conv2d_input_grad", "conv2d_rows", "conv2d_input_grad_rows"):
        return None
    schedule = Schedule(func)
    names = block_names(schedule)
    if "epilogue" not in names or kind not in names:
        return None
    main, consumer = schedule.get_sblock(kind), schedule.get_sblock("epilogue")
    sizes = extents(schedule, schedule.get_loops(consumer))
    if len(sizes) != 3:
        return None
    spec = spec_of(func)
    depthwise = spec["groups"] == spec["in_channels"] == spec["out_channels"] > 1
    if "pad" in names:
        small = max(spec["kernel"]) <= 3
        factors, sums = (COPY3, [None, None]) if small else (COPY, [None])
    else:
        factors, sums = (GUARD if depthwise else DENSE), [None]
    outer, inner = tile(schedule, consumer, [min(s, f) for s, f in zip(sizes, factors, strict=True)])
    sum_in_registers(schedule, main, outer[-1], tile_loops=3, unrolled_sums=sums, rows_first=True)
    if "pad" in names:
        pad = schedule.get_sblock("pad")
        schedule.compute_at(pad, outer[0])
        for loop in schedule.get_loops(pad)[1:]:
            schedule.annotate(loop, PIECES, 1)
    for loop in inner:
        schedule.unroll(loop)
    return schedule


WEIGHT_DENSE = (4, 1, 1, 8)
WEIGHT_DENSE_COLUMNS = 4
WEIGHT_DEPTHWISE = (1, 1, 1, 8)
WEIGHT_DEPTHWISE_COLUMNS = 16


def window_weights(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Gradients of weights: one row of a window, for several output channels, in registers; the sum runs along image rows."""
    if kind_of(func) != "conv2d_weight_grad":
        return None
    schedule = Schedule(func)
    main, consumer = schedule.get_sblock("conv2d_weight_grad"), schedule.get_sblock("sink")
    sizes = extents(schedule, schedule.get_loops(consumer))
    spec = spec_of(func)
    if len(sizes) != 4:
        return None
    depthwise = spec["groups"] > 1
    limits = WEIGHT_DEPTHWISE if depthwise else WEIGHT_DENSE
    columns = WEIGHT_DEPTHWISE_COLUMNS if depthwise else WEIGHT_DENSE_COLUMNS
    outer, inner = tile(schedule, consumer, [min(s, f) for s, f in zip(sizes, limits, strict=True)])
    width = extents(schedule, schedule.get_loops(main))[-1]
    sum_in_registers(schedule, main, outer[-1], tile_loops=4, unrolled_sums=[min(columns, width)])
    for loop in inner:
        schedule.unroll(loop)
    return schedule
