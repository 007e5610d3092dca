"""Kernels that do the same to each element: one loop over all of them, several elements in its body."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.schedules.blocks import PIECES, block_names

ELEMENTS = 4
MASK_ELEMENTS = 8
"""Elements in the loop's body; eight where one byte of a mask serves as many."""
FEWEST = 16


def elementwise(func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """One block that reads every operand of the result's shape at the result's index."""
    schedule = Schedule(func)
    return schedule if widen(schedule) else None


def widen(schedule: Schedule) -> bool:
    """Fuses the loops of the only block and unrolls them in part; False, and nothing done, where the kernel is not of that form."""
    names = block_names(schedule)
    if len(names) != 1:
        return False
    block = schedule.get_sblock(names[0])
    loops = schedule.get_loops(block)
    if not loops or not _one_to_one(schedule, schedule.get(block), loops):
        return False
    masked = any(str(p.ty.dtype) == "uint8" for p in schedule.mod["main"].params)
    loop = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    extent = int(schedule.get(loop).extent)
    if extent < FEWEST:
        return True
    outer, inner = schedule.split(loop, [None, MASK_ELEMENTS if masked else ELEMENTS])
    schedule.annotate(outer, PIECES, 1)
    schedule.unroll(inner)
    return True


def _one_to_one(schedule: Schedule, block: s_tir.SBlock, loops: list[Any]) -> bool:
    """Whether the block stores one element per iteration, all axes are spatial, and fusing its loops leaves simple indices."""
    if (
        len(block.iter_vars) != len(loops)
        or not isinstance(block.body, tirx.BufferStore)
        or block.init is not None
    ):
        return False
    if any(v.iter_type != tirx.IterVar.DataPar for v in block.iter_vars):
        return False
    if len(loops) == 1:
        return True
    store = block.body
    found: list[Any] = []
    tvm_ffi.structural_walk(store.value, [(tvm.ir.TensorLoad, found.append)])
    if [int(d) for d in store.buffer.shape] != [int(schedule.get(loop).extent) for loop in loops]:
        return False
    same_place = all(tvm_ffi.structural_equal(load.indices, store.indices) for load in found)
    return same_place and all(
        tvm_ffi.structural_equal(a, v.var) for a, v in zip(store.indices, block.iter_vars, strict=True)
    )
