"""The library on a board as seen from here: tensors and entries by name, checked before anything is sent."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvm_tinytrain.errors import DTypeError, PlanError, ShapeError, TransportError
from tvm_tinytrain.micro.protocol import BoardInfo, Command, Link
from tvm_tinytrain.values import within_axes

DTYPES = ("float32", "int32", "uint8", "int8", "float16")
ROLES = ("input", "label", "output", "loss", "param", "const", "state", "grad", "fisher", "plan")
_TENSOR = struct.Struct("<4B6I3I")
_REQUEST_S = 20.0
_WHOLE_ARENA = 0xFFFFFFFF  # TT_WHOLE_ARENA of the runtime
_STATUS_NAMES = {
    -1: "the arena is NULL",
    -2: "the arena is too small",
    -3: "the arena is not aligned",
    -4: "a tensor that was written holds a value out of its range",
    -5: "no such entry",
    -6: "no such tensor",
    -7: "bytes outside of a tensor",
    -8: "the tensor is in flash",
    -9: "the arena's guard words were overwritten",
    -10: "the call is not allowed before another one",
    -11: "not even the frozen network keeps the memory budget",
    -12: "the checkpoint is cut short or damaged",
    -13: "the checkpoint has another format, or is none",
    -14: "the checkpoint is another library's",
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the library; `in_flash`: it cannot be written."""

    name: str
    role: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    bytes: int
    in_flash: bool

    @property
    def size(self) -> int:
        """Count of elements."""
        return math.prod(self.shape)


def only_tensor(tensors: Mapping[str, TensorInfo], role: str, stage: str) -> TensorInfo:
    """The one tensor of a role; ShapeError when there are none or several."""
    found = [tensor for tensor in tensors.values() if tensor.role == role]
    if len(found) != 1:
        names = ", ".join(tensor.name for tensor in found) or "none"
        hint = "use read, write and call with the tensors' names"
        raise ShapeError(stage, f"tensors of role {role}", names, "exactly one", hint)
    return found[0]


def named_tensor(tensors: Mapping[str, TensorInfo], name: str, stage: str) -> TensorInfo:
    """A tensor by its name; ShapeError when there is none of that name."""
    if name not in tensors:
        known = ", ".join(list(tensors)[:40])
        raise ShapeError(stage, "tensor", repr(name), known, f"choose one of {stage}.tensors")
    return tensors[name]


def array_for(tensor: TensorInfo, value: ArrayLike, stage: str) -> NDArray[np.generic]:
    """The value as the tensor takes it: plain Python numbers in its dtype, any integers for labels, the batch axis of one added.

    ShapeError or DTypeError for what would have to be guessed, PlanError for what is not finite.
    """
    array: NDArray[Any] = np.asarray(value)
    whole = np.issubdtype(tensor.dtype, np.integer)
    if whole and np.issubdtype(array.dtype, np.integer):
        limits = np.iinfo(tensor.dtype.name)
        if array.size and not limits.min <= array.min() <= array.max() <= limits.max:
            found, allowed = f"{array.min()} to {array.max()}", f"{limits.min} to {limits.max}"
            raise DTypeError(stage, f"tensor {tensor.name}", found, allowed, f"it holds {tensor.dtype}")
        array = array.astype(tensor.dtype)
    elif not whole and isinstance(value, (int, float, list, tuple)) and array.dtype in (np.float64, np.int64):
        with np.errstate(over="ignore"):  # what overflows is refused below
            array = array.astype(tensor.dtype)
    if array.dtype != tensor.dtype:
        hint = f'convert it: array.astype("{tensor.dtype}")'
        raise DTypeError(stage, f"tensor {tensor.name}", array.dtype, tensor.dtype, hint)
    if array.size == tensor.size and (
        array.shape in ((), tensor.shape[1:]) or within_axes(array.shape) == tensor.shape
    ):
        array = array.reshape(tensor.shape)
    if array.shape != tensor.shape:
        raise ShapeError(stage, f"tensor {tensor.name}", array.shape, tensor.shape, "reshape the array")
    if not np.isfinite(array).all():
        hint = "check where they come from"
        raise PlanError(stage, f"tensor {tensor.name}", "nan or infinity", "finite numbers", hint)
    return array


def status_text(status: int) -> str:
    """What a status other than 0 means."""
    return f"status {status}: {_STATUS_NAMES.get(status, 'not a status of tinytrain.h')}"


def check_entry(entries: Sequence[str], entry: str, stage: str) -> None:
    """TransportError when there is no entry of that name."""
    if entry not in entries:
        raise TransportError(
            stage, "entry", repr(entry), ", ".join(entries), f"choose one of {stage}.entries"
        )


def check_arena(arena_bytes: int, offset: int, count: int, stage: str) -> None:
    """TransportError unless `count` bytes from `offset` on lie in the arena."""
    whole = isinstance(offset, (int, np.integer)) and isinstance(count, (int, np.integer))
    if not (whole and 0 <= int(offset) <= int(offset) + int(count) <= arena_bytes):
        hint = f"offsets and sizes stand in {stage}.tensors"
        raise TransportError(
            stage, "arena", f"{count} bytes from {offset} on", f"bytes 0 to {arena_bytes}", hint
        )


class RemoteLibrary:
    """Tensors and entries of the library that a board runs."""

    def __init__(self, link: Link, info: BoardInfo) -> None:
        self._link = link
        self.info = info
        listed = self._list_tensors()
        self._index = {tensor.name: i for i, tensor in enumerate(listed)}
        self.tensors: Mapping[str, TensorInfo] = {tensor.name: tensor for tensor in listed}
        self.entries = self._list_entries()

    def _list_tensors(self) -> list[TensorInfo]:
        listed: list[TensorInfo] = []
        while len(listed) < self.info.tensor_count:
            page = self._page(Command.TENSORS, len(listed))
            try:
                listed += _tensors(page)
            except (struct.error, ValueError) as error:
                raise _nonsense(f"tensors from {len(listed)}", page, "descriptions of tensors") from error
        return listed

    def _list_entries(self) -> tuple[str, ...]:
        names: list[str] = []
        while len(names) < self.info.entry_count:
            page = self._page(Command.ENTRIES, len(names))
            found = page[4:].split(b"\0")[:-1]
            if len(found) != int.from_bytes(page[:4], "little"):
                raise _nonsense(f"entries from {len(names)}", page, "names that end in a zero byte")
            names += [text.decode("utf-8", "replace") for text in found]
        return tuple(names)

    def _page(self, command: Command, first: int) -> bytes:
        page = self._link.request(command, struct.pack("<I", first), _REQUEST_S)
        if len(page) < 4 or page[:4] == b"\0\0\0\0":
            hint = "a name is longer than a frame: shorten it"
            raise TransportError(
                "transport", f"{command.name.lower()} from {first}", "none", "one or more", hint
            )
        return page

    def only(self, role: str) -> TensorInfo:
        """Return the one tensor of a role; ShapeError when there are none or several."""
        return only_tensor(self.tensors, role, "session")

    def tensor(self, name: str) -> TensorInfo:
        """Return a tensor's description; ShapeError when there is none of that name."""
        return named_tensor(self.tensors, name, "session")

    def read(self, name: str) -> NDArray[np.generic]:
        """Return a copy of a tensor."""
        tensor = self.tensor(name)
        data = self._read_bytes(self._index[name], name, 0, tensor.bytes)
        return np.frombuffer(bytearray(data), dtype=tensor.dtype).reshape(tensor.shape)

    def read_arena(self, offset: int, count: int) -> bytes:
        """Return `count` bytes of the arena from `offset` on; TransportError where they are not in it."""
        check_arena(self.info.arena_bytes, offset, count, "session")
        return self._read_bytes(_WHOLE_ARENA, "arena", int(offset), int(count))

    def write_arena(self, offset: int, data: bytes) -> None:
        """Write bytes into the arena; TransportError where they do not lie in it."""
        check_arena(self.info.arena_bytes, offset, len(data), "session")
        self._write_bytes(_WHOLE_ARENA, int(offset), data)

    def _read_bytes(self, index: int, name: str, offset: int, total: int) -> bytes:
        data = bytearray()
        while len(data) < total:
            count = min(self.info.capacity, total - len(data))
            request = struct.pack("<III", index, offset + len(data), count)
            part = self._link.request(Command.READ, request, _REQUEST_S)
            if len(part) != count:
                raise TransportError(
                    "transport", f"read {name}", f"{len(part)} bytes", count, "connect again"
                )
            data += part
        return bytes(data)

    def _write_bytes(self, index: int, first: int, data: bytes) -> None:
        chunk = self.info.capacity - 8
        for offset in range(0, len(data), chunk):
            head = struct.pack("<II", index, first + offset)
            self._link.request(Command.WRITE, head + data[offset : offset + chunk], _REQUEST_S)

    def write(self, name: str, array: NDArray[np.generic]) -> None:
        """Write a tensor after checking dtype and shape."""
        tensor = self.tensor(name)
        if tensor.in_flash:
            hint = "only tensors in the arena can be written"
            raise ShapeError("session", f"tensor {name}", "in flash", "in the arena", hint)
        if array.dtype != tensor.dtype:
            hint = f'convert it: array.astype("{tensor.dtype}")'
            raise DTypeError("session", f"tensor {name}", array.dtype, tensor.dtype, hint)
        if within_axes(array.shape) != tensor.shape:
            raise ShapeError("session", f"tensor {name}", array.shape, tensor.shape, "reshape the array")
        self._write_bytes(self._index[name], 0, np.ascontiguousarray(array).tobytes())

    def call(self, entry: str, times: int, seconds: float) -> int:
        """Run an entry; return the ticks of the board's clock that it took, 0 without a clock."""
        check_entry(self.entries, entry, "session")
        request = struct.pack("<II", self.entries.index(entry), times)
        status, ticks = self._numbers("<iQ", Command.CALL, request, seconds)
        self._check(f"entry {entry}", status)
        return int(ticks)

    def reset(self, seconds: float) -> None:
        """Paint the memories and call "init" again."""
        (status,) = self._numbers("<i", Command.RESET, b"", seconds)
        self._check('reset, entry "init"', status)

    def memory(self) -> tuple[int, int, int, int]:
        """Return stack bytes, stack peak, arena peak, arena bytes touched."""
        limit, stack, arena, touched = self._numbers("<4I", Command.MEMORY, b"", _REQUEST_S)
        return limit, stack, arena, touched

    def _numbers(self, form: str, command: Command, payload: bytes, seconds: float) -> tuple[int, ...]:
        reply = self._link.request(command, payload, seconds)
        if len(reply) != struct.calcsize(form):
            raise _nonsense(command.name.lower(), reply, f"{struct.calcsize(form)} bytes")
        return struct.unpack(form, reply)

    @staticmethod
    def _check(thing: str, status: int) -> None:
        if status != 0:
            hint = "see tt_status in tinytrain.h"
            raise TransportError("session", thing, status_text(status), "0", hint)


def _tensors(page: bytes) -> list[TensorInfo]:
    """The tensors that a page of the list describes; struct.error or ValueError where it describes none."""
    listed: list[TensorInfo] = []
    count, position = int.from_bytes(page[:4], "little"), 4
    for _ in range(count):
        dtype, role, ndim, _, *numbers = _TENSOR.unpack_from(page, position)
        position += _TENSOR.size
        end = page.index(b"\0", position)
        name = page[position:end].decode("utf-8", "replace")
        position = end + 1
        if dtype >= len(DTYPES) or role >= len(ROLES) or ndim > 6:
            found = f"dtype {dtype}, role {role}, {ndim} axes"
            raise TransportError("transport", f"tensor {name}", found, "tinytrain.h", "build again")
        shape, (bytes_, offset, in_flash) = tuple(numbers[:ndim]), numbers[6:]
        tensor = TensorInfo(name, ROLES[role], np.dtype(DTYPES[dtype]), shape, offset, bytes_, bool(in_flash))
        if tensor.size * tensor.dtype.itemsize != bytes_:
            found = f"{bytes_} bytes for {tensor.dtype}{list(shape)}"
            raise TransportError(
                "transport", f"tensor {name}", found, "as many as its elements", "build again"
            )
        listed.append(tensor)
    return listed


def _nonsense(thing: str, found: bytes, allowed: str) -> TransportError:
    """The error for a reply that is a frame and not an answer."""
    hint = "the host and the firmware differ: build and flash again"
    return TransportError("transport", thing, f"{len(found)} bytes, {found[:24].hex()}", allowed, hint)
