"""Starts a built program on its board and opens the byte stream to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.micro.elf import Program, read_program
from tvm_tinytrain.micro.instructions import InstructionCounter
from tvm_tinytrain.micro.process import start_process
from tvm_tinytrain.micro.transport import ProcessTransport, SerialTransport, Transport
from tvm_tinytrain.targets.boards import Board
from tvm_tinytrain.targets.tools import find_tool


@dataclass(frozen=True)
class StartOptions:
    """How to start a program.

    Attributes
    ----------
    by_function
        Split instruction counts by function (emulated boards).
    port
        Serial device of a real board.
    """

    by_function: bool = False
    port: str | None = None


@dataclass(frozen=True)
class Connection:
    """A running program: its byte stream and, on an emulator, its instruction counter."""

    transport: Transport
    counter: InstructionCounter | None = None

    def close(self) -> None:
        """End the program and release everything; a second call does nothing."""
        self.transport.close()
        if self.counter is not None:
            self.counter.close()


def start(board: Board, program: Path, options: StartOptions) -> Connection:
    """Start `program` on `board`.

    Raises
    ------
    ToolMissingError
        The emulator is not installed.
    BoardError
        The board needs something that the options lack.
    """
    return _RUNNERS[board.runner](board, program, options)


def _start_process(board: Board, program: Path, options: StartOptions) -> Connection:
    to_board, from_board = os.pipe(), os.pipe()
    try:
        process = start_process([str(program)], stdin=to_board[0], stdout=from_board[1])
    except BaseException:
        _close(to_board[1], from_board[0])
        raise
    finally:
        _close(to_board[0], from_board[1])
    return Connection(ProcessTransport(board.name, process, from_board[0], to_board[1]))


def _start_qemu_system(board: Board, program: Path, options: StartOptions) -> Connection:
    emulator = find_tool("qemu-system-arm", "emulator")
    content: Program = read_program(program)
    counter = InstructionCounter(content, options.by_function)
    to_board, from_board = os.pipe(), os.pipe()
    # The firmware opens the pipes by the names that Linux gives to the emulator's own descriptors.
    names = [f"/proc/self/fd/{descriptor}" for descriptor in (to_board[0], from_board[1])]
    arguments = ",".join(f"arg={word}" for word in ["firmware", *names])
    command = [emulator, "-M", board.machine, "-display", "none", "-monitor", "none", "-serial", "null"]
    command += ["-semihosting-config", f"enable=on,target=native,{arguments}", "-kernel", str(program)]
    try:
        process = start_process(
            command + counter.options(),
            stdin=to_board[0],
            inherited=(to_board[0], from_board[1], *counter.descriptors),
        )
    except BaseException:
        _close(to_board[1], from_board[0])
        counter.close()
        raise
    finally:
        _close(to_board[0], from_board[1])
    transport = ProcessTransport(board.name, process, from_board[0], to_board[1], content.name_addresses)
    return Connection(transport, counter)


def _start_serial(board: Board, program: Path, options: StartOptions) -> Connection:
    if options.port is None:
        hint = "pass port=, e.g. port='/dev/ttyACM0'"
        raise BoardError("connect", board.name, "no serial device", "a serial device", hint)
    return Connection(SerialTransport(board.name, options.port, board.baud))


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


_RUNNERS: dict[str, Callable[[Board, Path, StartOptions], Connection]] = {
    "process": _start_process,
    "qemu-system": _start_qemu_system,
    "serial": _start_serial,
}
