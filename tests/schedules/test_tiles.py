"""The choice of a tile."""

from __future__ import annotations

import pytest

from tvm_tinytrain.schedules.tiles import REGISTERS, best_tile


@pytest.mark.parametrize(
    "sizes", [(96, 256, 48), (8, 16, 160), (1, 49, 32), (7, 1, 3), (1, 1, 1), (448, 16, 112)]
)
def test_a_tile_fits_the_registers_and_the_product(sizes: tuple[int, int, int]) -> None:
    rows, columns, steps = sizes
    r, c = best_tile(rows, columns, steps)
    assert 1 <= r <= rows and 1 <= c <= columns
    assert r * c + min(r, c) + 1 < REGISTERS


def test_a_tile_that_divides_beats_one_with_a_rest() -> None:
    assert best_tile(8, 256, 64)[0] in (4, 8)
    assert best_tile(48, 256, 64) == (6, 4)
