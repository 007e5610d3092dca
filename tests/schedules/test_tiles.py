"""The choice of a tile."""

from __future__ import annotations

import pytest

from tvm_tinytrain.schedules.tiles import REGISTERS, best_tile
from tvm_tinytrain.schedules.vectors import packed_lanes
from tvm_tinytrain.targets.target import parse_target


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


def test_a_tile_of_whole_vectors() -> None:
    assert best_tile(48, 256, 64, lanes=8) == (4, 16)
    assert best_tile(2, 12, 64, lanes=8) == (2, 8)
    assert best_tile(48, 5, 64, lanes=8) == best_tile(48, 5, 64)


def test_lanes_of_targets() -> None:
    lanes = {
        name: packed_lanes(parse_target(f"c -mcpu={name}").to_tvm()) for name in ("cortex-m7", "cortex-a53")
    }
    assert lanes == {"cortex-m7": 1, "cortex-a53": 4}
    assert packed_lanes(parse_target("host").to_tvm()) in (4, 8)
