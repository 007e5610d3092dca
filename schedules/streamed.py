"""Blocks that stream row by row: register tiles of the sums inside of a row."""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.passes.kernels.stream_spec import Link, Stage, StreamSpec
from tvm_tinytrain.passes.kernels.streamed import streamed_block
from tvm_tinytrain.schedules.blocks import kind_of, spec_of
from tvm_tinytrain.schedules.knobs import DEFAULTS, Knobs
from tvm_tinytrain.schedules.tiles import REGISTERS
from tvm_tinytrain.schedules.vectors import lanes_of, registers_of, shuffles

_DEPTHWISE_TILE, _SMALL_TILE = 8, 4
"""Pixels of the depthwise tile: for windows of 3×3 the smaller one takes 4 % fewer instructions on a Cortex-M7."""
_WIDEST = 16


def streamed(func: tirx.PrimFunc, target: tvm.target.Target, knobs: Knobs = DEFAULTS) -> Schedule | None:
    """Builds the kernel again with tiles: its ring is state that loop transformations do not see through.

    Knobs for each link of the chain, with its number: ``first_channels``, ``first_pixels``, ``depthwise_pixels``,
    ``project_channels``, ``project_pixels``.
    """
    if kind_of(func) != "streamed_block":
        return None
    spec = StreamSpec.from_dict(spec_of(func))
    links = tuple(_tiled(link, index, knobs, target) for index, link in enumerate(spec.links))
    return Schedule(streamed_block(replace(spec, links=links)).without_attr("global_symbol"))


def _tiled(link: Link, index: int, knobs: Knobs, target: tvm.target.Target) -> Link:
    lanes = lanes_of(target, link.row_shape[1])
    if link.row_shape[1] % lanes or (not shuffles(target) and any(s.conv.stride[1] > 1 for s in link.stages)):
        lanes = 1
    registers = registers_of(target) if lanes > 1 else REGISTERS
    widths = _divisors(link.row_shape[1], _WIDEST, lanes)
    most = max(lanes, _SMALL_TILE if max(link.depthwise.conv.kernel) <= 3 else _DEPTHWISE_TILE)
    own = max(w for w in widths if w <= most)
    first = (
        (1, 1) if link.first is None else _chosen(link.first, f"first_%s_{index}", knobs, lanes, registers)
    )
    return replace(
        link,
        tile_first=first,
        tile_depthwise=knobs.choose(f"depthwise_pixels_{index}", widths, own),
        tile_project=_chosen(link.project, f"project_%s_{index}", knobs, lanes, registers),
        lanes=lanes,
    )


def _chosen(stage: Stage, name: str, knobs: Knobs, lanes: int, registers: int) -> tuple[int, int]:
    channels, pixels = _tile(stage, lanes, registers)
    return (
        knobs.choose(name % "channels", _divisors(stage.conv.out_channels, _WIDEST), channels),
        knobs.choose(name % "pixels", _divisors(stage.conv.out_width, _WIDEST * lanes, lanes), pixels),
    )


def _divisors(extent: int, limit: int, step: int = 1) -> list[int]:
    """Divisors up to ``limit`` that are a multiple of ``step``; all of them where there is none."""
    found = [d for d in range(1, min(extent, limit) + 1) if extent % d == 0]
    return [d for d in found if d % step == 0] or found


def _tile(stage: Stage, lanes: int, registers: int) -> tuple[int, int]:
    """(channels, pixels of a row): the fewest loads per multiply-accumulate that leave the sums in registers.

    GCC keeps the bounds of a clamp in registers too, all through the loops around the tile.
    """
    registers -= (stage.low is not None) + (stage.high is not None)
    candidates = [
        (c, j)
        for c in _divisors(stage.conv.out_channels, _WIDEST)
        for j in _divisors(stage.conv.out_width, _WIDEST * lanes, lanes)
        if c * (j // lanes) + min(c, j // lanes) + 1 < registers - 1
    ]
    # a divisor below a vector: one pixel at a time
    return min(candidates, key=lambda t: ((t[0] + t[1] / lanes + 3) / (t[0] * t[1]), t))
