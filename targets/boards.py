"""Boards: a chip, the way to start a program on it and to talk to it. Data only; a new board is one entry."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.targets.chips import CHIPS, KIB, Chip
from tvm_tinytrain.targets.target import Target, parse_target


@dataclass(frozen=True)
class Board:
    """One board.

    Attributes
    ----------
    name, chip_name
        The board's name and its chip in `targets.chips.CHIPS`.
    runner
        Who runs it: ``process`` (this machine), ``qemu-system``.
    machine
        The emulator's ``-M`` name.
    port
        The C file of `targets/runtime/port` that gives the byte stream.
    stack_bytes
        Stack of the firmware.
    frame_payload_bytes
        Most payload bytes of one protocol frame; the frame buffer is linked in SRAM.
    arena_guard_bytes
        Painted bytes behind the arena: a write there shows in the arena's high-water mark.
    baud
        Speed of a serial port.
    hardware
        True for a real board, which is linked here and not run.
    tools
        Programs that building and running need, beside the compiler.
    """

    name: str
    chip_name: str
    runner: str
    port: str
    machine: str = ""
    stack_bytes: int = 16 * KIB
    frame_payload_bytes: int = 1 * KIB
    arena_guard_bytes: int = 256
    baud: int = 115_200
    hardware: bool = False
    tools: tuple[str, ...] = ()

    @property
    def chip(self) -> Chip:
        """The chip's description."""
        return CHIPS[self.chip_name]

    @property
    def target(self) -> Target:
        """The target that firmware for this board is compiled for."""
        return parse_target("host" if self.chip.core == "host" else f"c -mcpu={self.chip.core}")

    @property
    def all_tools(self) -> tuple[str, ...]:
        """Every program that a session with this board starts."""
        return (self.target.compiler, self.target.tool("size"), *self.tools)


_EMULATOR = ("qemu-system-arm", "gcc")

_TABLE = (
    Board("host", "host", "process", "process", stack_bytes=256 * KIB, frame_payload_bytes=16 * KIB),
    Board("mps2-an500", "mps2-an500", "qemu-system", "semihosting", machine="mps2-an500", tools=_EMULATOR),
)

BOARDS: dict[str, Board] = {board.name: board for board in _TABLE}
DEFAULT_BOARD = "mps2-an500"


def get_board(board: str | Board) -> Board:
    """Return the board of that name; a `Board` is returned as it is.

    Raises
    ------
    BoardError
        No such board; the error lists those that there are.
    """
    if isinstance(board, Board):
        return board
    if board not in BOARDS:
        hint = "choose one of them, or add an entry to targets/boards.py"
        raise BoardError("board", "name", repr(board), ", ".join(BOARDS), hint)
    return BOARDS[board]
