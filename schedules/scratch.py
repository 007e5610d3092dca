"""A folder for what a search builds on its way: gone with the search, or, where that was killed, when the next one starts."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tvm_tinytrain.errors import ArchiveError

_PREFIX = "scratch-"
_LOCK = "scratch.lock"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in ``parent``, removed at the end; what searches left there that are no more is removed at the start.

    Who lives holds a lock in its folder, which the operating system takes back from a process that was killed. Folders are made and
    cleared under the lock of ``parent``, so that none is seen before its own lock is held. ArchiveError where ``parent`` is no folder.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "choose another folder"
        raise ArchiveError("tune", str(parent), error, "a folder, or none yet", hint) from error
    with (parent / _LOCK).open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        mine = (folder / _LOCK).open("w")
        fcntl.flock(mine, fcntl.LOCK_EX)
    with mine:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    try:
        with (folder / _LOCK).open("a") as lock:
            if _is_free(lock):
                shutil.rmtree(folder, ignore_errors=True)
    except (
        FileNotFoundError
    ):  # killed between making the folder and locking it, or its owner has just removed it
        shutil.rmtree(folder, ignore_errors=True)


def _is_free(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
