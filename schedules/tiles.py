"""The size of a tile of sums, from a count of the instructions that a tile takes on a core with 32 floating-point registers."""

from __future__ import annotations

from functools import cache

import tvm

REGISTERS = 32


def most_sums(target: tvm.target.Target, lanes: int) -> int:
    """Sums in a tile above which a search does not look: twice what the registers hold, in vectors of ``lanes``.

    Of 4,718 candidates for the Cortex-M7, measured before there was a limit, 468 were above it: they took 1.7 times the instructions of
    the kernel's best one in the median, and none came first that sums more than one product. GCC takes longest for them.
    """
    return 2 * lanes * REGISTERS


@cache
def best_tile(rows: int, columns: int, steps: int, *, ending: int = 3, lanes: int = 1) -> tuple[int, int]:
    """The tile of a [rows, columns] product over ``steps`` that takes the fewest instructions.

    ``ending`` counts instructions per result outside of the sum. With vectors of several ``lanes`` it is four rows of two vectors:
    measured on x86-64, the whole forward pass of MCUNet took 1.8 ms so, 2.1 with one vector, 3.3 with the tile for one lane.
    """
    if lanes > 1 and columns >= lanes:
        return min(rows, 4), 2 * lanes if columns >= 2 * lanes else lanes
    candidates = [
        (r, c)
        for r in range(1, min(rows, 16) + 1)
        for c in range(1, min(columns, 16) + 1)
        if r * c + min(r, c) + 1 < REGISTERS - 1
    ]
    return min(candidates, key=lambda t: (_instructions(rows, columns, steps, t, ending), t))


def _instructions(rows: int, columns: int, steps: int, tile: tuple[int, int], ending: int) -> int:
    """Estimated instructions of the whole product."""
    total = 0
    for r, row_tiles in _pieces(rows, tile[0]):
        for c, column_tiles in _pieces(columns, tile[1]):
            step = r * c + r + c + 3
            total += row_tiles * column_tiles * (steps * step + (ending + 1) * r * c + 12)
    return total


def _pieces(extent: int, size: int) -> list[tuple[int, int]]:
    """(size, count) of the whole tiles and of the remainder."""
    whole, rest = divmod(extent, size)
    return [(s, n) for s, n in ((size, whole), (rest, 1)) if s and n]
