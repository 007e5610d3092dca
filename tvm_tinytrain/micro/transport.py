"""Byte streams to a board: pipes of a process, a serial port, a TCP connection."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tvm_tinytrain.errors import ToolMissingError, TransportError
from tvm_tinytrain.micro.process import Process

_READ_BYTES = 65536
_SERIAL_FRAME_BITS = 1100 * 10
_LONGEST_WAIT_S = 3600.0


class Transport(Protocol):
    """A byte stream to a board, and what the board said on its console.

    Frames may be lost or damaged on it; `micro.protocol` repeats them.

    Attributes
    ----------
    repeat_s
        Seconds of silence after which a request is sent again first: a round trip with full frames.
    """

    repeat_s: float

    def read(self, seconds: float) -> bytes:
        """Return the bytes that came, at least one; b"" when none came in time.

        Raises
        ------
        TransportError
            The board's side is closed.
        """
        ...

    def write(self, data: bytes, seconds: float) -> None:
        """Send all bytes.

        Raises
        ------
        TransportError
            The board's side is closed, or does not take them in time.
        """
        ...

    def console(self) -> list[str]:
        """Return the last lines of the board's console."""
        ...

    def state(self) -> str:
        """Return "running", or how the board's program ended."""
        ...

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        ...


def closed_error(thing: str, state: str, console: Sequence[str]) -> TransportError:
    """Return the error for a board that is gone, with the last lines of its console."""
    return TransportError(
        "transport", thing, f"{state}{last_words(console)}", "a running board", "read its last words above"
    )


def last_words(console: Sequence[str], lines: int = 12) -> str:
    """Return the last lines of a console as a clause for an error's text."""
    spoken = [line for line in console if line.strip()]
    if not spoken:
        return "; its console is empty"
    return "; last words of its console:\n  " + "\n  ".join(spoken[-lines:]) + "\n"


def _wait(descriptor: int, event: int, seconds: float) -> bool:
    """Wait for an event of a descriptor, whatever its number (`select.select` takes those below 1024 only); False: none came."""
    waiting = select.poll()
    waiting.register(descriptor, event)
    return bool(waiting.poll(math.ceil(1000 * min(max(0.0, seconds), _LONGEST_WAIT_S))))


class _Descriptors:
    """Reading and writing of file descriptors with time limits."""

    def __init__(self, thing: str, reader: int, writer: int) -> None:
        self.thing = thing
        self._reader, self._writer = reader, writer
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)

    def read(self, seconds: float) -> bytes | None:
        """Return bytes, b"" after `seconds`, None at the end of the stream."""
        try:
            if not _wait(self._reader, select.POLLIN, seconds):
                return b""
            return os.read(self._reader, _READ_BYTES) or None
        except BlockingIOError:
            return b""
        except (OSError, ValueError):  # a descriptor of -1: closed by another thread
            return None

    def write(self, data: bytes, seconds: float) -> int | None:
        """Return how many bytes were taken in time, None when the stream is closed."""
        deadline = time.monotonic() + seconds
        view, sent = memoryview(data), 0
        while sent < len(data):
            try:
                sent += os.write(self._writer, view[sent:])
                continue
            except BlockingIOError:
                pass
            except OSError:
                return None
            left = deadline - time.monotonic()
            if not left > 0:  # nor a number
                break
            with contextlib.suppress(OSError, ValueError):  # closed by another thread: the next write says it
                _wait(self._writer, select.POLLOUT, left)
        return sent

    def close(self) -> None:
        for descriptor in {self._reader, self._writer} - {-1}:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._reader = self._writer = -1


class ProcessTransport:
    """Pipes to a child process: the program of board ``host``, or an emulator."""

    repeat_s = 0.05

    def __init__(
        self, thing: str, process: Process, reader: int, writer: int, explain: Callable[[str], str] = str
    ) -> None:
        """`explain` adds to a console line what is known here, e.g. the functions of a fault's addresses."""
        self._process = process
        self._explain = explain
        self._pipes = _Descriptors(thing, reader, writer)
        self._thing = thing
        self._closed = False

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def read(self, seconds: float) -> bytes:
        self._check_open()
        received = self._pipes.read(seconds)
        if received is None:
            self._process.wait(1.0)
            raise closed_error(self._thing, self.state(), self.console())
        return received

    def write(self, data: bytes, seconds: float) -> None:
        self._check_open()
        sent = self._pipes.write(data, seconds)
        if sent is None:
            self._process.wait(1.0)
            raise closed_error(self._thing, self.state(), self.console())
        if sent < len(data):
            _raise_full(self._thing, sent, len(data), seconds, self.console())

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error(self._thing, "a closed session", [])

    def console(self) -> list[str]:
        return [self._explain(line) for line in self._process.console()]

    def state(self) -> str:
        code = self._process.exit_code()
        if code is None:
            return "running"
        return f"its program ended by signal {-code}" if code < 0 else f"its program ended with code {code}"

    def wait(self, seconds: float) -> bool:
        """Wait for the child's end; return whether it ended."""
        return self._process.wait(seconds)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pipes.close()
            self._process.close()


def _raise_full(thing: str, sent: int, total: int, seconds: float, console: Sequence[str]) -> None:
    found = f"{sent} of {total} bytes taken in {seconds:.1f} s{last_words(console)}"
    hint = "the board does not read: it hangs or is busy; raise timeout_s if it is busy"
    raise TransportError("transport", thing, found, "a board that reads", hint)


class SerialTransport:
    """A serial port, by pyserial."""

    def __init__(self, thing: str, device: str, baud: int) -> None:
        try:
            import serial
        except ImportError as error:
            hint = "run: pip install pyserial"
            raise ToolMissingError("transport", "pyserial", "not installed", "pyserial", hint) from error
        self._thing = thing
        self.repeat_s = 0.1 + 2 * _SERIAL_FRAME_BITS / baud
        self._errors: Any = serial.SerialException
        try:
            self._port: Any = serial.Serial(device, baud, timeout=0, write_timeout=1, exclusive=True)
        except (serial.SerialException, ValueError) as error:
            hint = "name the board's device, e.g. port=/dev/ttyACM0, and see that you may open it"
            raise TransportError("transport", thing, str(error), "a serial device", hint) from error

    def read(self, seconds: float) -> bytes:
        try:
            self._port.timeout = max(0.0, seconds)
            first: bytes = self._port.read(1)
            return first + self._port.read(self._port.in_waiting) if first else b""
        except (self._errors, OSError, TypeError, ValueError) as error:  # pyserial waits by select.select
            raise closed_error(self._thing, f"serial port: {error}", []) from error

    def write(self, data: bytes, seconds: float) -> None:
        try:
            self._port.write_timeout = max(seconds, 0.1)
            self._port.write(data)
        except (self._errors, OSError, TypeError, ValueError) as error:
            raise closed_error(self._thing, f"serial port: {error}", []) from error

    def console(self) -> list[str]:
        return []  # it shares the line with the frames: the parser keeps what is text

    def state(self) -> str:
        return "running" if self._port.is_open else "a closed serial port"

    def close(self) -> None:
        self._port.close()


class TcpTransport:
    """A TCP connection to a server on a Linux board or in an emulator."""

    repeat_s = 0.3

    def __init__(self, thing: str, host: str, port: int, seconds: float = 10.0) -> None:
        self._thing = thing
        try:
            self._socket = socket.create_connection((host, port), timeout=seconds)
        except (OSError, UnicodeError, OverflowError) as error:  # a name that is none, a port above 65535
            hint = "start the board's server and name its address"
            found = f"{host}:{port}: {error}"
            raise TransportError("transport", thing, found, "a listening server", hint) from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pipes = _Descriptors(thing, self._socket.fileno(), self._socket.fileno())
        self._closed = False

    def read(self, seconds: float) -> bytes:
        received = None if self._closed else self._pipes.read(seconds)
        if received is None:
            raise closed_error(self._thing, "a closed connection", [])
        return received

    def write(self, data: bytes, seconds: float) -> None:
        sent = None if self._closed else self._pipes.write(data, seconds)
        if sent is None:
            raise closed_error(self._thing, "a closed connection", [])
        if sent < len(data):
            _raise_full(self._thing, sent, len(data), seconds, [])

    def console(self) -> list[str]:
        return []

    def state(self) -> str:
        return "a closed connection" if self._closed else "running"

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._socket.close()
