"""Starts a built program on its board and opens the byte stream to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.micro.elf import read_program
from tvm_tinytrain.micro.instructions import InstructionCounter
from tvm_tinytrain.micro.process import start_process
from tvm_tinytrain.micro.rpc_transport import RpcTransport
from tvm_tinytrain.micro.transport import ProcessTransport, SerialTransport, TcpTransport, Transport
from tvm_tinytrain.targets.boards import Board
from tvm_tinytrain.targets.tools import find_tool

_REMOTE_NAME = "tinytrain-library"
_FLASH_S = 120
_WITHOUT_PORT = ("process", "qemu-system", "qemu-user")


@dataclass(frozen=True)
class StartOptions:
    """How to start a program.

    Attributes
    ----------
    by_function
        Split instruction counts by function (emulated boards).
    port
        Serial device of a real board; for a Linux board ``[user@]host``, ``host:1234`` for a server that
        listens there already, or ``rpc://host:1234`` for TVM's RPC server (``/key``: through a tracker). None
        for an emulated board and for this machine.
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
        The board needs something that the options lack, or lacks what they name.
    """
    check_port(board, options.port)
    return _RUNNERS[board.runner](board, program, options)


def check_port(board: Board, port: str | None) -> None:
    """Raise BoardError where a port is no text, or named for a board that has none: another would answer than is connected there."""
    if port is not None and not isinstance(port, str):
        hint = 'e.g. port="/dev/ttyACM0", port="user@board"'
        raise BoardError("connect", f"{board.name}, port", repr(port), "a device or an address", hint)
    if port is not None and board.runner in _WITHOUT_PORT:
        allowed, hint = (
            f"no port: {board.note}",
            "leave out the port, or name the board that is connected to it",
        )
        raise BoardError("connect", f"{board.name}, port", repr(port), allowed, hint)


def _pipes_to(
    board: Board,
    command: Sequence[str],
    counter: InstructionCounter | None = None,
    explain: Callable[[str], str] = str,
) -> Connection:
    """Start a command whose standard input and output are the byte stream."""
    to_board, from_board = os.pipe(), os.pipe()
    inherited = counter.descriptors if counter is not None else ()
    try:
        process = start_process(command, stdin=to_board[0], stdout=from_board[1], inherited=inherited)
    except BaseException:
        _close(to_board[1], from_board[0])
        if counter is not None:
            counter.close()
        raise
    finally:
        _close(to_board[0], from_board[1])
    transport = ProcessTransport(board.name, process, from_board[0], to_board[1], explain)
    return Connection(transport, counter)


def _start_process(board: Board, program: Path, options: StartOptions) -> Connection:
    return _pipes_to(board, [str(program)])


def _start_qemu_user(board: Board, program: Path, options: StartOptions) -> Connection:
    emulator = find_tool(f"qemu-{board.target.core.triple.partition('-')[0]}", "emulator")
    content = read_program(program)
    counter = InstructionCounter(content, options.by_function)
    command = [emulator, "-cpu", board.machine, *counter.options(), str(program)]
    return _pipes_to(board, command, counter, content.name_addresses)


def _start_qemu_system(board: Board, program: Path, options: StartOptions) -> Connection:
    emulator = find_tool("qemu-system-arm", "emulator")
    content = read_program(program)
    counter = InstructionCounter(content, options.by_function)
    to_board, from_board = os.pipe(), os.pipe()
    # The firmware opens the pipes by the names that Linux gives to the emulator's own descriptors.
    names = [f"/proc/self/fd/{descriptor}" for descriptor in (to_board[0], from_board[1])]
    arguments = ",".join(f"arg={word}" for word in ["firmware", *names])
    command = [emulator, "-M", board.machine, "-display", "none", "-monitor", "none", "-serial", "null"]
    command += ["-semihosting-config", f"enable=on,target=native,{arguments}", "-kernel", str(program)]
    inherited = (to_board[0], from_board[1], *counter.descriptors)
    try:
        process = start_process(command + counter.options(), stdin=to_board[0], inherited=inherited)
    except BaseException:
        _close(to_board[1], from_board[0])
        counter.close()
        raise
    finally:
        _close(to_board[0], from_board[1])
    transport = ProcessTransport(board.name, process, from_board[0], to_board[1], content.name_addresses)
    return Connection(transport, counter)


def _start_serial(board: Board, program: Path, options: StartOptions) -> Connection:
    device = _address(board, options, "a serial device", "port='/dev/ttyACM0'")
    return Connection(SerialTransport(board.name, device, board.baud))


def _start_ssh(board: Board, program: Path, options: StartOptions) -> Connection:
    address = _address(board, options, "an address", "port='pi@raspberrypi' or port='raspberrypi:5555'")
    host, colon, number = address.partition(":")
    if colon and not (number.isdecimal() and int(number) < 1 << 16):
        raise BoardError("connect", f"{board.name}, port", address, "[user@]host or host:1234", "name it so")
    if colon:
        return Connection(TcpTransport(board.name, host, int(number)))
    command = [find_tool("ssh", "connect"), "-o", "BatchMode=yes", address, f"./{_REMOTE_NAME}"]
    return _pipes_to(board, command)


def _start_rpc(board: Board, program: Path, options: StartOptions) -> Connection:
    return Connection(
        RpcTransport(board.name, _address(board, options, "an address", "port='rpc://pi:9090'"), program)
    )


def _address(board: Board, options: StartOptions, what: str, example: str) -> str:
    if options.port is None:
        raise BoardError("connect", board.name, f"no port: {what} is needed", what, f"pass e.g. {example}")
    return options.port


def flash(board: Board, program: Path, options: StartOptions) -> None:
    """Put `program` on a real board; the others load it when they start.

    Raises
    ------
    ToolMissingError
        openocd, or scp, is not installed.
    BoardError
        The tool fails: its last words are in the text.
    """
    if board.runner == "serial":
        load = f"program {{{program}}} verify reset exit"  # one word of Tcl, whatever the path holds
        _run_tool(board, [find_tool("openocd", "flash"), "-f", board.machine, "-c", load])
    elif board.runner == "ssh" and ":" not in (
        address := _address(board, options, "an address", "port='pi@pi'")
    ):
        _run_tool(board, [find_tool("scp", "flash"), "-B", "-q", str(program), f"{address}:{_REMOTE_NAME}"])


def _run_tool(board: Board, command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FLASH_S, check=False)
    except subprocess.TimeoutExpired as error:
        hint = "see that the board is connected"
        raise BoardError("flash", board.name, f"no end in {_FLASH_S} s", "a flashed board", hint) from error
    if done.returncode:
        hint = "see that the board is connected:\n" + (done.stderr or done.stdout)[-1500:]
        raise BoardError(
            "flash", f"{board.name}, {Path(command[0]).name}", f"exit code {done.returncode}", "0", hint
        )


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


_RUNNERS: dict[str, Callable[[Board, Path, StartOptions], Connection]] = {
    "process": _start_process,
    "qemu-system": _start_qemu_system,
    "qemu-user": _start_qemu_user,
    "serial": _start_serial,
    "ssh": _start_ssh,
    "rpc": _start_rpc,
}
