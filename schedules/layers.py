"""Layers and their gradients: the sum of one output tile stays in registers, padding is copied piece by piece."""

from __future__ import annotations

import json
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.schedules.blocks import block_names, kind_of

_MAIN = {
    "conv2d": "epilogue",
    "conv2d_input_grad": "epilogue",
    "conv2d_weight_grad": "sink",
    "linear": "epilogue",
    "linear_input_grad": "epilogue",
    "linear_weight_grad": "sink",
    "bias_grad": "sink",
}


def divisor(extent: int, limit: int) -> int:
    """The largest divisor of ``extent`` that is at most ``limit``."""
    return max(d for d in range(1, limit + 1) if extent % d == 0)


def layers(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Tiles the last block and computes the sum inside the tile, in local variables."""
    kind = kind_of(func)
    if kind not in _MAIN:
        return None
    schedule = Schedule(func)
    names = block_names(schedule)
    if kind not in names or _MAIN[kind] not in names:
        return None  # e.g. the scattering form of conv2d_input_grad
    consumer = schedule.get_sblock(_MAIN[kind])
    loops = schedule.get_loops(consumer)
    extents = [int(schedule.get(loop).extent) for loop in loops]
    factors = _factors(kind, extents)
    outer, inner = [], []
    for loop, factor in zip(loops, factors, strict=True):
        first, second = schedule.split(loop, [None, factor])
        outer.append(first)
        inner.append(second)
    if kind == "conv2d_weight_grad":  # input channels outermost: a padded plane serves all rows
        outer[0], outer[1] = outer[1], outer[0]
    if "pad" in names and kind != "conv2d_weight_grad" and _dense(func):
        # rows outermost: the padded rows of all input channels serve every output channel
        outer[1], outer[2] = outer[2], outer[1]
    schedule.reorder(*outer, *inner)
    main = schedule.get_sblock(kind)
    schedule.compute_at(main, outer[-1], preserve_unit_loops=True)
    schedule.set_scope(main, 0, "local")
    if "pad" in names:
        _place_padding(schedule, kind, outer)
    _registers(schedule, main, len(outer), len(inner))
    for loop in inner:
        schedule.unroll(loop)
    return schedule


def _dense(func: tirx.PrimFunc) -> bool:
    return int(json.loads(str(func.attrs["tt.spec"]))["groups"]) == 1


def _factors(kind: str, extents: list[int]) -> list[int]:
    """Tile sizes of the consumer's loops: 4 × 4 outputs where the shape allows it."""
    if kind in ("conv2d", "conv2d_input_grad"):
        return [1, divisor(extents[1], 4), 1, divisor(extents[3], 4)]
    if kind == "conv2d_weight_grad":
        return [divisor(extents[0], 4), divisor(extents[1], 4), extents[2] if extents[1] == 1 else 1, 1]
    if len(extents) == 2:
        return [1, divisor(extents[1], 4)] if kind != "linear_weight_grad" else [1, divisor(extents[1], 4)]
    return [1] * len(extents)


def _place_padding(schedule: Schedule, kind: str, outer: list[Any]) -> None:
    """Pads the piece of the input that the tile reads, as far out as it does not grow beyond that."""
    position = 1 if kind != "conv2d_weight_grad" else 0
    if kind == "conv2d_weight_grad" and int(schedule.get(outer[0]).extent) == 1:
        position = 1
    schedule.compute_at(schedule.get_sblock("pad"), outer[position])


def _registers(schedule: Schedule, main: Any, outer: int, inner: int) -> None:
    """Sum outside, tile inside, all of the tile unrolled."""
    loops = schedule.get_loops(main)
    tile, sums = loops[outer : outer + inner], loops[outer + inner :]
    if sums:
        schedule.reorder(*sums, *tile)
        init = schedule.decompose_reduction(main, sums[0])
        for loop in schedule.get_loops(init)[outer:]:
            schedule.unroll(loop)
    for loop in tile:
        schedule.unroll(loop)
