"""The size of a tile of sums, from a count of the instructions that a tile takes on a core with 32 floating-point registers."""

from __future__ import annotations

from functools import cache

REGISTERS = 32


@cache
def best_tile(rows: int, columns: int, steps: int, *, ending: int = 3) -> tuple[int, int]:
    """The tile of a [rows, columns] product over ``steps`` that takes the fewest instructions.

    ``ending`` counts instructions per result outside of the sum.
    """
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
