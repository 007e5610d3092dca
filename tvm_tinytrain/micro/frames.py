"""Frames on a byte stream: COBS between zero bytes, with a CRC-32; twin of the C runtime's ``tt_frame.h``.

    0x00  COBS( kind | code | id, 16 bits | payload | CRC-32 of all before )  0x00

All numbers are little-endian.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

REQUEST = 0x01
REPLY = 0x81
UNKNOWN_ID = 0xFFFF
_HEADER = struct.Struct("<BBH")
_TRAILER = 4
_FULL_BLOCK = 254
_FAULT = re.compile(rb"tt-fault: [ -~]*(?=\n)")


@dataclass(frozen=True)
class Frame:
    """One frame. code: the command of a request, the status of a reply."""

    kind: int
    code: int
    id: int
    payload: bytes


def cobs_encode(data: bytes) -> bytes:
    """Return `data` without zero bytes: each zero becomes the count of bytes to the next one."""
    encoded = bytearray()
    runs = data.split(b"\0")
    for run in runs[:-1]:
        _append_run(encoded, run)
        encoded.append(len(run) % _FULL_BLOCK + 1)
        encoded += run[len(run) - len(run) % _FULL_BLOCK :]
    last = runs[-1]
    _append_run(encoded, last)
    rest = len(last) % _FULL_BLOCK
    if rest or not last:
        encoded.append(rest + 1)
        encoded += last[len(last) - rest :]
    return bytes(encoded)


def _append_run(encoded: bytearray, run: bytes) -> None:
    """Append the full blocks of a run without zeros; what is left of it is up to the caller."""
    for start in range(0, len(run) - _FULL_BLOCK + 1, _FULL_BLOCK):
        encoded.append(0xFF)
        encoded += run[start : start + _FULL_BLOCK]


def cobs_decode(encoded: bytes) -> bytes | None:
    """Return what was encoded, or None when `encoded`, which holds no zero byte, ends inside of a block."""
    data = bytearray()
    position, total = 0, len(encoded)
    while position < total:
        code = encoded[position]
        end = position + code
        if end > total:
            return None
        data += encoded[position + 1 : end]
        position = end
        if code != 0xFF and position < total:
            data.append(0)
    return bytes(data)


def encode_frame(frame: Frame) -> bytes:
    """Return the bytes of a frame with its delimiters."""
    body = _HEADER.pack(frame.kind, frame.code, frame.id) + frame.payload
    return b"\0" + cobs_encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


def decode_frame(encoded: bytes) -> Frame | None:
    """Return the frame between two delimiters, or None when it is damaged."""
    body = cobs_decode(encoded)
    if body is None or len(body) < _HEADER.size + _TRAILER:
        return None
    covered, trailer = body[:-_TRAILER], body[-_TRAILER:]
    if zlib.crc32(covered) != int.from_bytes(trailer, "little"):
        return None
    kind, code, identifier = _HEADER.unpack_from(covered)
    return Frame(kind, code, identifier, covered[_HEADER.size :])


class FrameParser:
    """Cuts a byte stream into frames; any input is allowed.

    Attributes
    ----------
    damaged
        How many pieces between delimiters were no frame.
    text
        The last of those pieces that were readable text: what a board's console wrote on the same line.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity + capacity // _FULL_BLOCK + 2
        self._pending = bytearray()
        self._skipping = False
        self.damaged = 0
        self.text = bytearray()

    def push(self, received: bytes) -> list[Frame]:
        """Return the frames that end in `received`."""
        frames: list[Frame] = []
        pieces = received.split(b"\0")
        for piece in pieces[:-1]:
            self._extend(piece)
            self._close(frames)
        self._extend(pieces[-1])
        return frames

    def _extend(self, piece: bytes) -> None:
        if len(self._pending) + len(piece) > self._capacity:
            self._skipping = True
            self._note_text(bytes(self._pending))
            self._pending.clear()
        if not self._skipping:
            self._pending += piece

    def _close(self, frames: list[Frame]) -> None:
        piece = bytes(self._pending)
        self._pending.clear()
        if self._skipping or (piece and (frame := decode_frame(piece)) is None):
            self._skipping = False
            self.damaged += 1
            self._note_text(piece)
        elif piece and frame is not None:
            frames.append(frame)

    def _note_text(self, piece: bytes) -> None:
        printable = bytes(byte for byte in piece if 32 <= byte < 127 or byte == 10)
        if piece and len(printable) * 10 >= len(piece) * 9:
            self.text += printable + b"\n"
            del self.text[:-4096]

    @property
    def unfinished_text(self) -> str:
        """What came after the last delimiter, when it is readable: a crashing board sends no delimiter."""
        printable = bytes(byte for byte in self._pending if 32 <= byte < 127 or byte == 10)
        return printable.decode("ascii") if len(printable) * 10 >= len(self._pending) * 9 else ""

    @property
    def fault(self) -> str | None:
        """The line of a board's fault handler where it is the last thing that came: after it nothing more will."""
        if self._pending[1:2] == bytes([REPLY]):
            return None  # the beginning of a frame, whose payload may be any text
        found = _FAULT.search(self._pending)
        return None if found is None else found[0].decode("ascii")
