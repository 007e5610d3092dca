"""Gradients of the weights of convolutions with windows: part of a window in registers, summed along image rows."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.schedules.blocks import extents, kind_of, spec_of, sum_in_registers, tile
from tvm_tinytrain.schedules.knobs import DEFAULTS, Knobs, up_to

_CHANNELS = (1, 2, 3, 4, 5, 6, 8)
_WINDOW_ROWS = (1, 2, 3)
_COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
_WINDOW_COLUMNS = 8
"""Most columns of a window that are summed at once."""


def window_weights(
    func: tirx.PrimFunc, target: tvm.target.Target, knobs: Knobs = DEFAULTS
) -> Schedule | None:
    """One row of a window (for several output channels where the convolution is dense) at a time, over all rows of the image.

    Knobs: ``channels`` (dense), ``window_rows``, ``columns`` of the image in the loop's body.
    """
    if kind_of(func) != "conv2d_weight_grad":
        return None
    schedule = Schedule(func)
    main, consumer = schedule.get_sblock("conv2d_weight_grad"), schedule.get_sblock("sink")
    sizes = extents(schedule, schedule.get_loops(consumer))
    if len(sizes) != 4:
        return None
    width = extents(schedule, schedule.get_loops(main))[-1]
    dense = spec_of(func)["groups"] == 1
    channels = knobs.choose("channels", up_to(sizes[0], _CHANNELS), min(sizes[0], 4)) if dense else 1
    window_rows = knobs.choose(
        "window_rows", up_to(sizes[2], _WINDOW_ROWS), min(sizes[2], 2 if sizes[2] <= 5 else 1)
    )
    outer, inner = tile(schedule, consumer, [channels, 1, window_rows, min(sizes[3], _WINDOW_COLUMNS)])
    own = 4 if dense else 2 if width <= 4 and sizes[2] <= 5 else 16
    columns = knobs.choose("columns", up_to(width, _COLUMNS), min(width, own))
    sum_in_registers(schedule, main, outer[-1], tile_loops=4, unrolled_sums=[columns])
    for loop in inner:
        schedule.unroll(loop)
    return schedule
