"""The trained rows of a task-adaptive library, read off a board's arena and written back: checkpoints from the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tvm_tinytrain.adaptation.rows import row_places as places_of
from tvm_tinytrain.errors import CheckpointError
from tvm_tinytrain.micro.checkpoint import Checkpoint, CheckpointLayout
from tvm_tinytrain.own_tensors import PLAN, REQUEST


class ArenaAccess(Protocol):
    """What is asked of a library, on a board or in this process: tensors, entries, and the arena's bytes."""

    def read(self, name: str) -> NDArray[Any]:
        """Return a copy of a tensor."""

    def write(self, name: str, value: Any) -> None:
        """Write a tensor."""

    def call(self, entry: str) -> None:
        """Run an entry."""

    def read_arena(self, offset: int, count: int) -> bytes:
        """Return bytes of the arena."""

    def write_arena(self, offset: int, data: bytes) -> None:
        """Write bytes of the arena."""


def row_places(library: ArenaAccess, metadata: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Return {row tensor: (offset in the arena, trained channels, bytes of a row)} of the installed plan.

    Raises CheckpointError where the library is not task-adaptive.
    """
    if not isinstance(metadata.get("adaptive"), Mapping):
        hint = "build the library with update=TaskAdaptive(...)"
        raise CheckpointError("trained rows", "library", "a fixed plan", "a task-adaptive library", hint)
    return places_of(library.read(PLAN), metadata["adaptive"])


def read_rows(library: ArenaAccess, metadata: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return {weight or bias: float32[trained channels, values of a row]} of everything that is trained."""
    layout = CheckpointLayout.from_metadata(metadata)
    places, found = row_places(library, metadata), {}
    for tensor in layout.tensors:
        offset, channels, row_bytes = places[tensor.name]
        data = library.read_arena(offset, channels * row_bytes) if channels else b""
        found[tensor.name] = np.frombuffer(data, "<f4").reshape(channels, row_bytes // 4).copy()
    return found


def installed_bitmap(library: ArenaAccess, metadata: Mapping[str, Any]) -> bytes:
    """Return the installed plan: bit c, low bits first, is channel c of all candidates' channels.

    It is that of the channel lists that the device trains by: the tensor `request` may hold the next plan already.

    Raises CheckpointError where nothing is installed, or a list is damaged.
    """
    places, channels = row_places(library, metadata), CheckpointLayout.from_metadata(metadata).channels
    chosen = [np.zeros(count, np.uint8) for count in channels]
    for row in metadata["adaptive"]["rows"]:
        offset, count, row_bytes = places[row["name"]]
        if row["kind"] != "channels" or not count:
            continue
        listed = np.frombuffer(library.read_arena(offset, count * row_bytes), "<i4")
        limit = channels[row["candidate"]]
        if listed[0] < 0 or listed[-1] >= limit or (np.diff(listed) <= 0).any():
            found, allowed = listed.tolist(), f"ascending channels below {limit}"
            raise CheckpointError("checkpoint", row["name"], found, allowed, "install or load a plan again")
        chosen[row["candidate"]][listed] = 1
    bits = np.concatenate(chosen)
    if not bits.any():
        hint = "install or select first"
        raise CheckpointError("checkpoint", "library", "nothing is trained", "an installed plan", hint)
    return np.packbits(bits, bitorder="little").tobytes()


def take_checkpoint(library: ArenaAccess, metadata: Mapping[str, Any]) -> Checkpoint:
    """Return what the library has trained, with its plan. Raises CheckpointError where nothing is installed."""
    bitmap = installed_bitmap(library, metadata)
    return Checkpoint.of(CheckpointLayout.from_metadata(metadata), bitmap, read_rows(library, metadata))


def put_checkpoint(library: ArenaAccess, metadata: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Install a checkpoint's plan and write its rows; gradients and the optimizer's moments begin at zero.

    Raises CheckpointError, before anything is written, where it is another library's.
    """
    layout = CheckpointLayout.from_metadata(metadata)
    checkpoint.check(layout)
    request = np.zeros_like(np.asarray(library.read(REQUEST)))
    request[: len(checkpoint.bitmap)] = np.frombuffer(checkpoint.bitmap, np.uint8)
    library.write(REQUEST, request)
    library.call("install")
    places = row_places(library, metadata)
    for name, rows in checkpoint.rows(layout).items():
        if rows.size:
            library.write_arena(places[name][0], rows.astype("<f4").tobytes())
