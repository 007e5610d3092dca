"""Blocks that stream row by row: register tiles of the sums inside of a row."""

from __future__ import annotations

from dataclasses import replace

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.passes.kernels.stream_spec import Link, Stage, StreamSpec
from tvm_tinytrain.passes.kernels.streamed import streamed_block
from tvm_tinytrain.schedules.blocks import kind_of, spec_of
from tvm_tinytrain.schedules.tiles import REGISTERS

_DEPTHWISE_TILE = 8


def streamed(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Builds the kernel again with tiles: its ring is state that loop transformations do not see through."""
    if kind_of(func) != "streamed_block":
        return None
    spec = StreamSpec.from_dict(spec_of(func))
    tiled = replace(spec, links=tuple(_tiled(link) for link in spec.links))
    return Schedule(streamed_block(tiled).without_attr("global_symbol"))


def _tiled(link: Link) -> Link:
    return replace(
        link,
        tile_first=(1, 1) if link.first is None else _tile(link.first),
        tile_depthwise=max(_divisors(link.row_shape[1], _DEPTHWISE_TILE)),
        tile_project=_tile(link.project),
    )


def _divisors(extent: int, limit: int) -> list[int]:
    return [d for d in range(1, min(extent, limit) + 1) if extent % d == 0]


def _tile(stage: Stage) -> tuple[int, int]:
    """(channels, pixels of a row): the fewest loads per multiply-accumulate that leave the sums in registers."""
    candidates = [
        (c, j)
        for c in _divisors(stage.conv.out_channels, 16)
        for j in _divisors(stage.conv.out_width, 16)
        if c * j + min(c, j) + 1 < REGISTERS - 1
    ]
    return min(candidates, key=lambda t: ((t[0] + t[1] + 3) / (t[0] * t[1]), t))
