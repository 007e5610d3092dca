"""Convolutions with windows, dense and depthwise, and the gradients of their inputs: a tile of neighbouring outputs in registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from tvm_tinytrain.schedules.knobs import DEFAULTS, Knobs, up_to
from tvm_tinytrain.schedules.tiles import most_sums
from tvm_tinytrain.schedules.vectors import lanes_of, packed_lanes, registers_of, shuffles, unroll_vectors

_KINDS = ("conv2d", "conv2d_input_grad", "conv2d_rows", "conv2d_input_grad_rows")
_CHANNELS = (1, 2, 3, 4, 5, 6, 8)
_ROWS = (1, 2, 3, 4)
_COLUMNS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16)
_YES_NO = (0, 1)


@dataclass(frozen=True)
class WindowTile:
    """Channels, rows and columns of a tile; ``unroll_rows``: the window's rows are unrolled too."""

    channels: int
    rows: int
    columns: int
    unroll_rows: bool


def windows(func: tirx.PrimFunc, target: tvm.target.Target, knobs: Knobs = DEFAULTS) -> Schedule | None:
    """Forward convolutions and gathered input gradients.

    The sums over channels stay loops, the window's columns are unrolled with the tile, so that each input element is loaded once per
    window row; the window's rows stay a loop, which begins and ends where the image does, or are unrolled as well. A depthwise kernel
    that copies planes does so channel by channel.

    Knobs: ``channels`` (dense), ``rows``, ``columns``, ``unroll_rows``, ``rows_first`` (see `sum_in_registers`).
    """
    kind = kind_of(func)
    if kind not in _KINDS:
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
    window = extents(schedule, schedule.get_loops(main))[-2:]
    lanes = lanes_of(target, sizes[2]) if _neighbours(spec, kind, target) else 1
    default = _default(sizes, window, max(spec["kernel"]), depthwise, "pad" in names, packed_lanes(target))
    if (
        (kind, default) == ("conv2d_input_grad", WindowTile(1, 4, 4, True))
        and "pad" in names
        and max(sizes[1:]) > 4
    ):
        default = WindowTile(
            1, 2, 4, True
        )  # the window runs backwards here: with four rows the addresses do not fit the registers
    if lanes > 1:
        default = _default_vectors(sizes, window, depthwise, lanes, registers_of(target))
    factors = [
        1 if depthwise else knobs.choose("channels", up_to(sizes[0], _CHANNELS), default.channels),
        knobs.choose("rows", up_to(sizes[1], _ROWS), default.rows),
        knobs.choose("columns", [c for c in up_to(sizes[2], _COLUMNS) if c % lanes == 0], default.columns),
    ]
    knobs.product_up_to(("channels", "rows", "columns"), most_sums(target, lanes))
    outer, inner = tile(schedule, consumer, factors)
    unroll_rows = knobs.choose("unroll_rows", _YES_NO, int(default.unroll_rows))
    rows_first = bool(knobs.choose("rows_first", _YES_NO, 1))
    unrolled = [None, None] if unroll_rows else [None]
    sum_in_registers(
        schedule, main, outer[-1], tile_loops=3, unrolled_sums=unrolled, rows_first=rows_first, lanes=lanes
    )
    if "pad" in names:
        pad = schedule.get_sblock("pad")
        schedule.compute_at(pad, outer[0])
        for loop in schedule.get_loops(pad)[1:]:
            schedule.annotate(loop, PIECES, 1)
    unroll_vectors(schedule, inner, lanes)
    return schedule


def _neighbours(spec: dict[str, Any], kind: str, target: tvm.target.Target) -> bool:
    """Whether neighbouring results read neighbouring elements, or every second one where the core shuffles vectors."""
    halves = kind in ("conv2d", "conv2d_rows") and shuffles(target)
    return spec["stride"][1] == 1 or (spec["stride"][1] == 2 and halves)


def _default_vectors(
    sizes: list[int], window: list[int], depthwise: bool, lanes: int, registers: int
) -> WindowTile:
    """Rows share what they load where the window's rows are unrolled; channels share it in a dense convolution."""
    if not depthwise:
        return WindowTile(
            min(sizes[0], 4), 1, lanes * (2 if sizes[2] % (2 * lanes) == 0 and registers > 16 else 1), False
        )
    return WindowTile(1, min(sizes[1], 4), lanes, max(window) <= 5)


def _default(
    sizes: list[int], window: list[int], kernel: int, depthwise: bool, padded: bool, lanes: int = 1
) -> WindowTile:
    """What measured best on a Cortex-M7 (benchmarks/kernels.py) for such sizes, and with vectors on x86-64."""
    height, width = sizes[1:]
    if lanes > 1 and depthwise and width >= lanes:
        return WindowTile(1, 1, lanes, False)
    small = max(window) <= 3
    if (
        not depthwise and max(window) < kernel
    ):  # the input's gradient behind a stride: every other tap meets a column
        return WindowTile(min(sizes[0], 3), 1, min(width, 8), False)
    if not depthwise:
        return WindowTile(min(sizes[0], 4), 1, min(width, 4), False)
    if padded and (small or max(height, width, max(window) - 1) <= 4):
        return WindowTile(1, min(height, 4), min(width, 4), True)
    if padded:
        return WindowTile(1, min(height, 2), min(width, 8), False)
    if max(window) <= 2:  # the input's gradient behind a stride: few taps for each result
        return WindowTile(1, min(height, 4), min(width, 4), True)
    if kernel <= 3:
        return WindowTile(1, 1, min(width, 4), True)
    return WindowTile(1, 1, min(width, 16), False)
