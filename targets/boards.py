"""Boards: a chip, the way to start a program on it and to talk to it. Data only; a new board is one entry."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.targets.chips import CHIPS, KIB, Chip, check_whole
from tvm_tinytrain.targets.target import Target, parse_target

RUNNERS = ("process", "qemu-system", "qemu-user", "serial", "ssh", "rpc")
FRAME_PAYLOAD_BYTES = (256, 65536)
"""The least and the most that both sides of the protocol take."""


@dataclass(frozen=True)
class Board:
    """One board.

    Attributes
    ----------
    name, chip_name
        The board's name and its chip in `targets.chips.CHIPS`.
    runner
        Who runs it: ``process`` (this machine), ``qemu-system``, ``qemu-user``, ``serial`` (flashed by
        openocd), ``ssh`` (a Linux board), ``rpc`` (TVM's RPC server, see `rpc_board`).
    machine
        The emulator's ``-M`` or ``-cpu`` name; openocd's configuration of a flashed board.
    port
        The C file of `targets/runtime/port` that gives the byte stream.
    stack_bytes
        Stack of the firmware, a multiple of 8.
    frame_payload_bytes
        Most payload bytes of one protocol frame; the frame buffer is linked in SRAM.
    arena_guard_bytes
        Painted bytes behind the arena, a multiple of 4: a write there shows in the arena's high-water mark.
    baud
        Speed of a serial port.
    hardware
        True for a real board, which is linked here and not run.
    tools
        Programs that building and running need, beside the compiler.

    Raises BoardError for a chip or a runner that there is not, and for sizes that no firmware can have.
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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", self.name):
            allowed, hint = "letters, digits and . _ + -", "it stands in C and in the names of files"
            raise BoardError("board", "name", repr(self.name), allowed, hint)
        for what, name, known in (("chip_name", self.chip_name, CHIPS), ("runner", self.runner, RUNNERS)):
            if name not in known:
                hint = (
                    "choose one of them" if known is RUNNERS else "choose one of them, or add a Chip to CHIPS"
                )
                raise BoardError("board", f"{self.name}, {what}", repr(name), ", ".join(known), hint)
        check_whole(f"{self.name}, stack_bytes", self.stack_bytes, 8, multiple=8)  # as Arm's calls want it
        check_whole(f"{self.name}, frame_payload_bytes", self.frame_payload_bytes, *FRAME_PAYLOAD_BYTES)
        check_whole(f"{self.name}, arena_guard_bytes", self.arena_guard_bytes, 0, multiple=4)
        check_whole(f"{self.name}, baud", self.baud, 1)

    @property
    def chip(self) -> Chip:
        """The chip's description."""
        return CHIPS[self.chip_name]

    @property
    def target(self) -> Target:
        """The target that firmware for this board is compiled for."""
        return parse_target("host" if self.chip.core == "host" else f"c -mcpu={self.chip.core}")

    @property
    def is_emulated(self) -> bool:
        """Whether an emulator of this machine runs it, which counts instructions."""
        return self.runner.startswith("qemu")

    @property
    def note(self) -> str:
        """What a reader of a list of boards must know."""
        if self.hardware:
            return "not run on hardware here: linked within its memories only"
        return "emulated" if self.is_emulated else "a process of this machine"

    @property
    def all_tools(self) -> tuple[str, ...]:
        """Every program that a session with this board starts."""
        return tuple(dict.fromkeys((self.target.compiler, *self.tools)))


_EMULATOR = ("qemu-system-arm", "gcc")
_FLASHER = ("openocd",)
_REMOTE = ("ssh", "scp")


def _emulated(name: str, chip: str) -> Board:
    return Board(name, chip, "qemu-system", "semihosting", machine=name, tools=_EMULATOR)


def _user_mode(name: str, chip: str, cpu: str) -> Board:
    board = Board(name, chip, "qemu-user", "process", machine=cpu, tools=(name, "gcc"))
    return replace(board, stack_bytes=256 * KIB, frame_payload_bytes=16 * KIB)


def _linux(name: str, chip: str) -> Board:
    board = Board(name, chip, "ssh", "process", hardware=True, tools=_REMOTE)
    return replace(board, stack_bytes=256 * KIB, frame_payload_bytes=16 * KIB)


def _flashed(name: str, chip: str, port: str, config: str) -> Board:
    return Board(
        name,
        chip,
        "serial",
        port,
        machine=config,
        stack_bytes=8 * KIB,
        arena_guard_bytes=64,
        hardware=True,
        tools=_FLASHER,
    )


_TABLE = (
    Board("host", "host", "process", "process", stack_bytes=256 * KIB, frame_payload_bytes=16 * KIB),
    _emulated("mps2-an385", "mps2-an385"),
    _emulated("mps2-an386", "mps2-an386"),
    _emulated("mps2-an500", "mps2-an500"),
    replace(
        _emulated("mps2-an500", "cortex-m7-512kb"),
        name="mps2-an500-512kb",
        stack_bytes=2 * KIB,
        frame_payload_bytes=512,
    ),
    _emulated("mps2-an505", "mps2-an505"),
    _emulated("mps3-an547", "mps3-an547"),
    _emulated("netduinoplus2", "stm32f405-emulated"),
    _user_mode("qemu-aarch64", "cortex-a53-emulated", "cortex-a53"),
    _user_mode("qemu-arm", "cortex-a7-emulated", "cortex-a7"),
    _flashed("stm32f746g-disco", "stm32f746ng", "uart_stm32f7", "board/stm32f746g-disco.cfg"),
    _flashed("nucleo-h743zi", "stm32h743zi", "uart_stm32h7", "board/st_nucleo_h743zi.cfg"),
    _flashed("nrf52840-dk", "nrf52840", "uart_nrf52", "board/nordic_nrf52_dk.cfg"),
    _linux("raspberry-pi-zero-2", "rp3a0"),
    _linux("raspberry-pi-4", "bcm2711"),
    _linux("jetson-nano", "tegra210"),
)

BOARDS: dict[str, Board] = {board.name: board for board in _TABLE}
DEFAULT_BOARD = "mps2-an500"


def rpc_board(board: Board) -> Board:
    """Return the board as TVM's RPC server on it runs a library: a shared library in the server's process.

    Raises BoardError where it has no operating system to run one.
    """
    if board.target.core.is_microcontroller or board.is_emulated:
        allowed, hint = "a board with Linux, or host", "drive it over its own port"
        raise BoardError("connect", f"{board.name}, port rpc://", board.note, allowed, hint)
    return replace(board, runner="rpc", port="rpc", frame_payload_bytes=16 * KIB, tools=())


def get_board(board: str | Board) -> Board:
    """Return the board of that name; a `Board` is returned as it is.

    Raises
    ------
    BoardError
        No such board; the error lists those that there are.
    """
    if isinstance(board, Board):
        return board
    if not isinstance(board, str) or board not in BOARDS:
        hint = "choose one of them, or add an entry to targets/boards.py"
        raise BoardError("board", "name", repr(board), ", ".join(BOARDS), hint)
    return BOARDS[board]
