"""Does a scheduled depthwise kernel copy each plane before it overwrites it? A question to the schedule, not to the kernel's name."""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec

_OPERAND = {"conv2d": 0, "conv2d_input_grad": 0}
"""Kinds of kernels that have such a form, and the position of the operand whose planes they may overwrite."""


def copies_planes_first(kernel: tirx.PrimFunc, position: int) -> bool:
    """Whether ``for tile of planes: {copy the tile's planes of the operand; compute the tile's planes of the result}`` is the kernel.

    Only then may the result have the operand's bytes. The first statement in the loop holds all reads of the operand and covers exactly
    the planes of one iteration; the stores to the result stand behind it.
    """
    kind = kernel_kind(kernel)
    if kind is None or _OPERAND.get(kind) != position:
        return False
    spec = Conv2DSpec.from_dict(kernel_spec(kernel))
    if not spec.depthwise or spec.stride != (1, 1):
        return False
    around, inside = _first_sequence(kernel.body)
    planes = [extent for extent in around if extent > 1]
    if inside is None or len(planes) > 1:
        return False
    operand, result = kernel.params[position], kernel.params[-1]
    copy, rest = inside[0], inside[1:]
    if (
        any(_loads(s, operand) for s in rest)
        or _stores(copy, result)
        or not any(_stores(s, result) for s in rest)
    ):
        return False
    tiles = math.prod(planes)
    per_plane = _padded_plane(spec, kind)
    return spec.in_channels % tiles == 0 and _trips(copy) == spec.in_channels // tiles * per_plane


def _padded_plane(spec: Conv2DSpec, kind: str) -> int:
    """Elements of the workspace for one plane."""
    if kind == "conv2d":
        return spec.padded_height * spec.padded_width
    reach = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    return (spec.height + reach[0]) * (spec.width + reach[1])


def _first_sequence(stmt: Any) -> tuple[list[int], Any]:
    """Extents of the loops around the first sequence of statements, and that sequence (None where there is none)."""
    extents: list[int] = []
    while True:
        if isinstance(stmt, s_tir.SBlockRealize):
            stmt = stmt.block.body
        elif isinstance(stmt, tirx.For):
            extents.append(int(stmt.extent))
            stmt = stmt.body
        elif isinstance(stmt, tirx.SeqStmt):
            return extents, list(stmt.seq)
        else:
            return extents, None


def _trips(stmt: Any) -> int:
    """Iterations of a nest of loops around one block; 0 where it is something else."""
    total = 1
    while isinstance(stmt, tirx.For):
        total *= int(stmt.extent)
        stmt = stmt.body
    return total if isinstance(stmt, s_tir.SBlockRealize) else 0


def _loads(stmt: Any, buffer: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(stmt, [(tvm.ir.TensorLoad, found.append)])
    return any(load.source.same_as(buffer) for load in found)


def _stores(stmt: Any, buffer: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(stmt, [(tirx.BufferStore, found.append)])
    return any(store.buffer.same_as(buffer) for store in found)
