"""Requests and replies over a transport: repeated when damaged, told apart by id, bounded in time."""

from __future__ import annotations

import enum
import os
import struct
import threading
import time
from dataclasses import dataclass

from tvm_tinytrain.errors import TransportError
from tvm_tinytrain.micro.frames import REPLY, REQUEST, UNKNOWN_ID, Frame, FrameParser, encode_frame
from tvm_tinytrain.micro.transport import Transport, last_words
from tvm_tinytrain.targets.boards import FRAME_PAYLOAD_BYTES

PROTOCOL_VERSION = 1
_LEAST_CAPACITY, _MOST_CAPACITY = FRAME_PAYLOAD_BYTES
_LONGEST_REPEAT_S = 4.0
_MOST_NAKS = 200


class Command(enum.IntEnum):
    """The commands of ``tt_server.h``."""

    SYNC = 1
    INFO = 2
    TENSORS = 3
    ENTRIES = 4
    READ = 5
    WRITE = 6
    CALL = 7
    MEMORY = 8
    RESET = 9
    ECHO = 10
    EXIT = 11


class Status(enum.IntEnum):
    """The statuses of ``tt_server.h``."""

    OK = 0
    BAD_FRAME = 1
    BAD_COMMAND = 2
    BAD_LENGTH = 3
    NO_TENSOR = 4
    NO_ENTRY = 5
    RANGE = 6
    READ_ONLY = 7
    NOT_READY = 8
    NOT_SYNCED = 9


@dataclass(frozen=True)
class LinkStatistics:
    """What went wrong on the way and was repaired."""

    repeated_requests: int
    damaged_frames: int
    stale_replies: int


class Link:
    """One request at a time to the server on a board, whatever thread asks.

    A request is sent again when the board reports a damaged frame, and at growing intervals while it says
    nothing; a board runs a repeated request only once. The answer must come within the time that the request
    is given.
    """

    def __init__(self, transport: Transport, thing: str) -> None:
        self._transport = transport
        self._thing = thing
        self._parser = FrameParser(_MOST_CAPACITY + 16)
        self._id = int.from_bytes(os.urandom(1), "little")
        self._lock = threading.Lock()
        self._repeated = 0
        self._stale = 0

    @property
    def statistics(self) -> LinkStatistics:
        """What went wrong so far."""
        return LinkStatistics(self._repeated, self._parser.damaged, self._stale)

    def connect(self, seconds: float) -> None:
        """Start a new count of ids on the board: late copies of older requests are void from now on.

        Raises
        ------
        TransportError
            The board does not answer, or speaks another protocol.
        """
        nonce = os.urandom(4)
        reply = self.request(Command.SYNC, nonce, seconds)
        if reply != nonce:
            hint = "reset the board and connect again"
            raise TransportError("transport", self._thing, f"nonce {reply.hex()}", nonce.hex(), hint)

    def request(self, command: Command, payload: bytes, seconds: float) -> bytes:
        """Send a request and return the payload of its reply.

        Raises
        ------
        TransportError
            No answer within `seconds`, a closed transport, or a status other than OK.
        """
        with self._lock:
            self._id = (self._id + 1) % UNKNOWN_ID
            encoded = encode_frame(Frame(REQUEST, command, self._id, payload))
            reply = self._exchange(encoded, command, seconds)
        if reply.code != Status.OK:
            self._raise_status(command, reply)
        return reply.payload

    def _exchange(self, encoded: bytes, command: Command, seconds: float) -> Frame:
        deadline = time.monotonic() + seconds
        interval, naks = self._transport.repeat_s, 0
        self._transport.write(encoded, seconds)
        repeat_at = time.monotonic() + interval
        while (now := time.monotonic()) < deadline:
            received = self._transport.read(min(deadline, repeat_at) - now)
            for frame in self._parser.push(received):
                if frame.kind != REPLY:
                    self._stale += 1
                elif frame.id == self._id:
                    return frame
                elif frame.code == Status.BAD_FRAME and frame.id == UNKNOWN_ID:
                    naks += 1
                    repeat_at = min(repeat_at, time.monotonic()) if naks < _MOST_NAKS else repeat_at
                else:
                    self._stale += 1
            # SYNC may find the last words of a program that was started again since
            if self._parser.fault is not None and command is not Command.SYNC:
                found = f"its program crashed{last_words(self.console())}"
                hint = "read its last words above, reset the board and connect again"
                raise TransportError("transport", self._thing, found, "a running board", hint)
            if time.monotonic() >= repeat_at:
                self._transport.write(encoded, max(0.1, deadline - time.monotonic()))
                self._repeated += 1
                interval = min(interval * 2, _LONGEST_REPEAT_S)
                repeat_at = time.monotonic() + interval
        raise self._silence(command, seconds)

    def _silence(self, command: Command, seconds: float) -> TransportError:
        found = f"no answer in {seconds:.1f} s, {self._transport.state()}{last_words(self.console())}"
        hint = "see what it does with a debugger, or raise timeout_s if the work takes longer"
        return TransportError("transport", f"{self._thing}, {command.name.lower()}", found, "an answer", hint)

    def console(self) -> list[str]:
        """Return the last lines of the board's console, wherever they came."""
        shared = self._parser.text.decode("ascii") + self._parser.unfinished_text
        return self._transport.console() + shared.splitlines()

    def _raise_status(self, command: Command, reply: Frame) -> None:
        if reply.code == Status.NOT_SYNCED:
            found = "the board was started again since the session began, and what it had learnt is gone"
            hint = "open a new session; its load() brings back what save() kept"
            thing = f"{self._thing}, {command.name.lower()}"
            raise TransportError("transport", thing, found, "the program that the session began with", hint)
        name = Status(reply.code).name if reply.code in list(Status) else str(reply.code)
        found = name.lower().replace("_", " ")
        hint = "the host and the firmware differ: build and flash again"
        if reply.code == Status.NOT_READY and len(reply.payload) >= 4:
            found = f'the library\'s "init" returned {struct.unpack_from("<i", reply.payload)[0]}'
            hint = "see tt_status in tinytrain.h: the arena is too small, or not aligned"
        raise TransportError("transport", f"{self._thing}, {command.name.lower()}", found, "ok", hint)


@dataclass(frozen=True)
class BoardInfo:
    """What a board says of the program that it runs."""

    protocol: int
    capacity: int
    arena_bytes: int
    arena_align: int
    tensor_count: int
    entry_count: int
    ticks_per_second: int
    arena_linked_bytes: int
    library: str
    version: str
    digest: str
    board: str


_INFO = struct.Struct("<8I")


def read_info(link: Link, seconds: float) -> BoardInfo:
    """Ask a board what it runs.

    Raises
    ------
    TransportError
        It speaks another version of the protocol, or answers nonsense.
    """
    payload = link.request(Command.INFO, b"", seconds)
    texts = payload[_INFO.size :].split(b"\0")
    if len(payload) < _INFO.size or len(texts) < 5:
        raise TransportError(
            "transport", "info", payload.hex(), "eight numbers and four texts", "build again"
        )
    numbers = _INFO.unpack_from(payload)
    info = BoardInfo(*numbers, *(text.decode("utf-8", "replace") for text in texts[:4]))
    if info.protocol != PROTOCOL_VERSION:
        hint = "flash firmware of this version"
        raise TransportError("transport", "protocol version", info.protocol, PROTOCOL_VERSION, hint)
    if info.capacity < _LEAST_CAPACITY:
        hint = "build with a larger TT_FRAME_PAYLOAD"
        raise TransportError("transport", "frame payload", info.capacity, f"{_LEAST_CAPACITY} or more", hint)
    return info
