"""Checkpoints on the host: the trained rows of a task-adaptive library, as a device saves and loads them.

The format stands in ``targets/runtime/adapt/tt_checkpoint.h``; both sides refuse the same bytes. A file
(``.tt``) is one checkpoint and nothing else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_tinytrain.errors import CheckpointError
from tvm_tinytrain.whole_file import whole_file

VERSION = 1
_MAGIC = b"TTCK"
_HEADER = struct.Struct("<4sHH16s4I")
_TRAILER = struct.Struct("<I")
_HINT_TORN = "take an older checkpoint, or save again"
_HINT_FOREIGN = "load it into the library that saved it"


@dataclass(frozen=True)
class SavedTensor:
    """A weight or bias of a candidate: float32, row_bytes for each trained channel."""

    name: str
    candidate: int
    row_bytes: int


@dataclass(frozen=True)
class CheckpointLayout:
    """What a library's checkpoints hold: its digest, the channels of each candidate, the saved tensors in order."""

    digest: str
    channels: tuple[int, ...]
    tensors: tuple[SavedTensor, ...]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> CheckpointLayout:
        """Read the layout off a library's metadata: ``digest`` and ``adaptive``, whose rows say their ``kind``
        ("copy", "zero" or "channels"). Raises CheckpointError for any other metadata."""
        if "adaptive" not in metadata:
            hint = "build the library with update=TaskAdaptive(...)"
            raise CheckpointError("checkpoint", "library", "a fixed plan", "a task-adaptive library", hint)
        try:
            adaptive = metadata["adaptive"]
            return cls(
                str(metadata["digest"]),
                tuple(int(c["channels"]) for c in adaptive["candidates"]),
                tuple(
                    SavedTensor(str(row["name"]), int(row["candidate"]), int(row["row_bytes"]))
                    for row in adaptive["rows"]
                    if row["kind"] == "copy"
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            found = f"{type(error).__name__}: {error}"
            hint = "build the library with update=TaskAdaptive(...) and this version"
            raise CheckpointError(
                "checkpoint", "metadata", found, "a task-adaptive library's", hint
            ) from error

    def trained(self, bitmap: bytes) -> tuple[tuple[int, ...], ...]:
        """Return the trained channels of each candidate, ascending."""
        bits = int.from_bytes(bitmap, "little")
        found = []
        for channels in self.channels:
            found.append(tuple(k for k in range(channels) if bits >> k & 1))
            bits >>= channels
        return tuple(found)

    def payload_bytes(self, bitmap: bytes) -> int:
        """Bytes of all rows of a plan."""
        trained = self.trained(bitmap)
        return sum(len(trained[t.candidate]) * t.row_bytes for t in self.tensors)


@dataclass(frozen=True)
class Checkpoint:
    """Trained rows with the plan that they belong to.

    digest: of the library. channels: of all its candidates. bitmap: bit c, low bits first, is channel c of
    them; (channels + 7) // 8 bytes. payload: the rows of each saved tensor, channels ascending.
    """

    digest: str
    channels: int
    bitmap: bytes
    payload: bytes

    @classmethod
    def of(
        cls, layout: CheckpointLayout, bitmap: bytes, rows: Mapping[str, NDArray[np.float32]]
    ) -> Checkpoint:
        """Make a checkpoint of {tensor: float32[trained channels, ...]}; CheckpointError where a tensor is
        missing or has another size than the plan asks for."""
        trained = layout.trained(bitmap)
        parts = []
        for tensor in layout.tensors:
            wanted = len(trained[tensor.candidate]) * tensor.row_bytes
            given = rows[tensor.name] if tensor.name in rows else np.zeros(0, np.float32)
            part = np.ascontiguousarray(given, "<f4").tobytes()
            if len(part) != wanted:
                hint = "give float32 rows of the trained channels"
                raise CheckpointError(
                    "checkpoint", f"rows of {tensor.name}", f"{len(part)} bytes", f"{wanted} bytes", hint
                )
            parts.append(part)
        made = cls(layout.digest, sum(layout.channels), bitmap, b"".join(parts))
        made.check(layout)
        return made

    def to_bytes(self) -> bytes:
        """Return the checkpoint in its format."""
        bitmap = self.bitmap.ljust(_bitmap_bytes(self.channels), b"\0")
        body = bitmap + self.payload
        total = _HEADER.size + len(body) + _TRAILER.size
        trained = int.from_bytes(self.bitmap, "little").bit_count()
        digest = self.digest.encode("ascii")
        numbers = (self.channels, trained, len(self.payload), total)
        head = _HEADER.pack(_MAGIC, VERSION, _HEADER.size, digest, *numbers)
        return head + body + _TRAILER.pack(zlib.crc32(head + body))

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read what a device or `to_bytes` wrote, exactly. Raises CheckpointError for anything else."""
        if len(data) < _HEADER.size + _TRAILER.size:
            least = _HEADER.size + _TRAILER.size
            raise _torn("length", f"{len(data)} bytes", f"at least {least}")
        magic, version, header, digest, channels, trained, payload, total = _HEADER.unpack_from(data)
        if (magic, version, header) != (_MAGIC, VERSION, _HEADER.size):
            found = f"{magic!r}, version {version}, header of {header} bytes"
            allowed = f"{_MAGIC!r}, version {VERSION}, header of {_HEADER.size} bytes"
            raise CheckpointError("checkpoint", "format", found, allowed, "is it a checkpoint?")
        parts = _HEADER.size + _bitmap_bytes(channels) + payload + _TRAILER.size
        if not parts == total == len(data):
            raise _torn("length", f"{len(data)} bytes", f"{total} of {parts}")
        crc, stored = zlib.crc32(data[: -_TRAILER.size]), _TRAILER.unpack_from(data, total - _TRAILER.size)[0]
        if crc != stored:
            raise _torn("CRC-32", f"{crc:#010x}", f"{stored:#010x}")
        start = _HEADER.size + _bitmap_bytes(channels)
        bitmap, bits = data[_HEADER.size : start], (channels + 7) // 8
        plan = int.from_bytes(bitmap, "little")
        if plan.bit_length() > channels or plan.bit_count() != trained or not trained:
            found = f"{plan.bit_count()} of {channels}, highest {plan.bit_length() - 1}"
            raise CheckpointError("checkpoint", "trained channels", found, trained, _HINT_TORN)
        try:
            text = digest.decode("ascii")
        except UnicodeDecodeError as error:
            raise CheckpointError("checkpoint", "digest", digest, "ASCII", _HINT_FOREIGN) from error
        return cls(text, channels, bitmap[:bits], data[start : -_TRAILER.size])

    def check(self, layout: CheckpointLayout) -> None:
        """Raise CheckpointError where this is another library's, or its rows do not follow from its plan."""
        if self.digest != layout.digest:
            raise CheckpointError("checkpoint", "library", self.digest, layout.digest, _HINT_FOREIGN)
        channels = sum(layout.channels)
        size = (channels + 7) // 8
        if self.channels != channels or len(self.bitmap) != size:
            found = f"{self.channels} in {len(self.bitmap)} bytes"
            raise CheckpointError(
                "checkpoint", "channels", found, f"{channels} in {size} bytes", _HINT_FOREIGN
            )
        if not 0 < int.from_bytes(self.bitmap, "little").bit_length() <= channels:
            raise CheckpointError(
                "checkpoint", "plan", "no channel, or one too high", channels, _HINT_FOREIGN
            )
        needed = layout.payload_bytes(self.bitmap)
        if len(self.payload) != needed:
            found = f"{len(self.payload)} bytes"
            raise CheckpointError("checkpoint", "rows", found, f"{needed} bytes", _HINT_FOREIGN)

    def rows(self, layout: CheckpointLayout) -> dict[str, NDArray[np.float32]]:
        """Return {tensor: float32[trained channels, values of a row]}; CheckpointError as `check`."""
        self.check(layout)
        trained, at = layout.trained(self.bitmap), 0
        found = {}
        for tensor in layout.tensors:
            count = len(trained[tensor.candidate])
            part = self.payload[at : at + count * tensor.row_bytes]
            found[tensor.name] = np.frombuffer(part, "<f4").reshape(count, tensor.row_bytes // 4).copy()
            at += len(part)
        return found


def write_checkpoint(path: str | Path, checkpoint: Checkpoint) -> Path:
    """Write a file whole or not at all; returns its path. Raises CheckpointError where that is impossible."""
    target = Path(path)
    try:
        with whole_file(target) as part:
            part.write_bytes(checkpoint.to_bytes())
    except OSError as error:
        hint = "choose another folder"
        raise CheckpointError("checkpoint", str(target), error, "a writable path", hint) from error
    return target


def read_checkpoint(path: str | Path, layout: CheckpointLayout | None = None) -> Checkpoint:
    """Read a file, and check that it is of the library where its layout is given. Raises CheckpointError."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError("checkpoint", str(path), error, "a readable file", "check the path") from error
    found = Checkpoint.from_bytes(data)
    if layout is not None:
        found.check(layout)
    return found


def _bitmap_bytes(channels: int) -> int:
    return (channels + 31) // 32 * 4


def _torn(thing: str, found: str, allowed: str) -> CheckpointError:
    return CheckpointError("checkpoint", thing, found, allowed, _HINT_TORN)
