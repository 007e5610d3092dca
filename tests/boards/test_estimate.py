"""Estimates of cycles, time and energy: proportional, and refused where nothing is known."""

from __future__ import annotations

import pytest

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.targets.boards import BOARDS, get_board
from tvm_tinytrain.targets.estimate import estimate


def test_estimates_are_proportional() -> None:
    counted_on = get_board("mps2-an500")
    one = estimate(get_board("stm32f746g-disco"), 12_000_000, counted_on)
    two = estimate(get_board("stm32f746g-disco"), 24_000_000, counted_on)
    assert one.cycles == pytest.approx(10_000_000)
    assert one.seconds == pytest.approx(0.625)  # 16 MHz: the clock after reset
    assert one.energy_joules is not None
    assert two.energy_joules == pytest.approx(2 * one.energy_joules)


def test_emulated_boards_have_a_clock_and_no_energy() -> None:
    assert estimate(get_board("mps2-an500"), 1000, get_board("mps2-an500")).energy_joules is None


@pytest.mark.parametrize("name", ["host", "qemu-aarch64"])
def test_no_clock_no_estimate(name: str) -> None:
    with pytest.raises(BoardError, match="a board with a clock"):
        estimate(get_board(name), 1000, get_board(name))


@pytest.mark.parametrize(
    ("name", "counted_on"),
    [
        ("stm32f746g-disco", "mps2-an385"),  # soft floats
        ("stm32f746g-disco", "mps2-an386"),  # no minimum and maximum of floats
        ("stm32f746g-disco", "mps3-an547"),  # vectors
        ("nrf52840-dk", "mps2-an500"),
        ("raspberry-pi-4", "qemu-arm"),
        ("nucleo-h743zi", "stm32f746g-disco"),  # its clock counts cycles
    ],
)
def test_a_count_of_another_core_is_refused(name: str, counted_on: str) -> None:
    with pytest.raises(BoardError, match=f"{name}: found a count on {counted_on} .*allowed instructions of"):
        estimate(get_board(name), 1000, get_board(counted_on))


@pytest.mark.parametrize("name", [board.name for board in BOARDS.values() if board.hardware])
def test_every_real_board_has_an_estimate(name: str) -> None:
    board = get_board(name)
    emulated = {"cortex-m4": "mps2-an386", "cortex-m7": "mps2-an500"}.get(board.chip.core, "qemu-aarch64")
    found = estimate(board, 10**9, get_board(emulated))
    assert found.energy_joules is not None and 0.1 < found.energy_joules < 10
