"""Vectors of floats (NEON, Helium, AVX2): how many elements a core handles at once, and loops over a tile that become vectors."""

from __future__ import annotations

from functools import cache

import tvm
from tvm.s_tir import Schedule, ScheduleError
from tvm.s_tir.schedule import LoopRV

from tvm_tinytrain.targets.cores import AARCH64, CORES
from tvm_tinytrain.targets.target import host_core_name

_PACKED = {"x86-64": 8, "x86-64-baseline": 4, "cortex-a7": 1}  # Armv7: see lanes_of


def registers_of(target: tvm.target.Target) -> int:
    """Vector registers of a core."""
    features = CORES[str(target.attrs["mcpu"])].features
    return 16 if "avx2" in features else 8 if "mve" in features else 32


def shuffles(target: tvm.target.Target) -> bool:
    """Whether picking every second element of two vectors is cheap."""
    core = CORES.get(str(target.attrs.get("mcpu") or ""))
    return core is not None and "mve" not in core.features


def lanes_of(target: tvm.target.Target, extent: int) -> int:
    """Floats of an explicit vector that an axis of ``extent`` elements is made of: 8, 4, or 1 for a core without vectors of floats.

    On 32-bit Arm, NEON flushes small numbers to zero: it is not used there.
    """
    core = CORES.get(str(target.attrs.get("mcpu") or ""))
    if core is None:
        return 1
    four = "mve" in core.features or ("neon" in core.features and core.triple == AARCH64)
    sizes = [8, 4] if "avx2" in core.features else [4] if four else []
    fitting = [n for n in sizes if n <= extent]
    return next((n for n in fitting if extent % n == 0), fitting[0] if fitting else 1)


def packed_lanes(target: tvm.target.Target) -> int:
    """How many float32 the C compiler packs into a register by itself: neighbouring results of a tile share one. 1 for none.

    It decides the size of a tile that has no explicit vectors; the order of every sum stays as it is written.
    """
    name = str(target.attrs["mcpu"]) if "mcpu" in target.attrs else host_core_name()
    core = CORES.get(name)
    return _PACKED.get(name, 4 if core is not None and "neon" in core.features else 1)


def unroll_vectors(schedule: Schedule, loops: list[LoopRV], lanes: int) -> None:
    """Unrolls the loops of a tile; the last one runs over ``lanes`` elements at once.

    One by one where the block changes what it reads, which TVM does not vectorise.
    """
    *others, last = loops
    if lanes > 1:
        last, vector = schedule.split(last, [None, lanes])
        try:
            schedule.vectorize(vector)
        except ScheduleError:
            schedule.unroll(vector)
    for loop in (*others, last):
        schedule.unroll(loop)


@cache
def best_vector_tile(
    rows: int, columns: int, lanes: int, registers: int, *, broadcast: bool = True
) -> tuple[int, int]:
    """(rows, columns) of the tile of sums with the fewest loads per multiply-accumulate; columns are a multiple of ``lanes``.

    ``broadcast``: a row's operand is one element, which needs no register of its own; else it is a vector as well.
    """
    vectors = columns // lanes
    candidates = [
        (r, v)
        for r in range(1, min(rows, 8) + 1)
        for v in range(1, min(vectors, 8) + 1)
        if r * v + v + (1 if broadcast else r) <= registers
    ]

    def cost(tile: tuple[int, int]) -> tuple[float, int, int]:
        r, v = tile
        whole = -(-rows // r) * r * -(-vectors // v) * v / (rows * vectors)
        return ((r * v + r + v + 2) / (r * v) * whole, r, v)

    r, v = min(candidates, key=cost)
    return r, v * lanes
