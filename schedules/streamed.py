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

_DEPTHWISE_TILE = 8
_WIDEST = 16


def streamed(func: tirx.PrimFunc, target: tvm.target.Target, knobs: Knobs = DEFAULTS) -> Schedule | None:
    """Builds the kernel again with tiles: its ring is state that loop transformations do not see through.

    Knobs for each link of the chain, with its number: ``first_channels``, ``first_pixels``, ``depthwise_pixels``,
    ``project_channels``, ``project_pixels``.
    """
    if kind_of(func) != "streamed_block":
        return None
    spec = StreamSpec.from_dict(spec_of(func))
    links = tuple(_tiled(link, index, knobs) for index, link in enumerate(spec.links))
    return Schedule(streamed_block(replace(spec, links=links)).without_attr("global_symbol"))


def _tiled(link: Link, index: int, knobs: Knobs) -> Link:
    widths = _divisors(link.row_shape[1], _WIDEST)
    own = max(w for w in widths if w <= _DEPTHWISE_TILE)
    return replace(
        link,
        tile_first=(1, 1) if link.first is None else _chosen(link.first, f"first_%s_{index}", knobs),
        tile_depthwise=knobs.choose(f"depthwise_pixels_{index}", widths, own),
        tile_project=_chosen(link.project, f"project_%s_{index}", knobs),
    )


def _chosen(stage: Stage, name: str, knobs: Knobs) -> tuple[int, int]:
    channels, pixels = _tile(stage)
    return (
        knobs.choose(name % "channels", _divisors(stage.conv.out_channels, _WIDEST), channels),
        knobs.choose(name % "pixels", _divisors(stage.conv.out_width, _WIDEST), pixels),
    )


def _divisors(extent: int, limit: int) -> list[int]:
    return [d for d in range(1, min(extent, limit) + 1) if extent % d == 0]


def _tile(stage: Stage) -> tuple[int, int]:
    """(channels, pixels of a row): the fewest loads per multiply-accumulate that leave the sums in registers."""
    candidates = [
        (c, j)
        for c in _divisors(stage.conv.out_channels, _WIDEST)
        for j in _divisors(stage.conv.out_width, _WIDEST)
        if c * j + min(c, j) + 1 < REGISTERS - 1
    ]
    return min(candidates, key=lambda t: ((t[0] + t[1] + 3) / (t[0] * t[1]), t))
