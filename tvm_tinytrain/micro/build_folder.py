"""Temporary folders that firmware is built in: gone at the end, or, where the process was killed, when the next one is made."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PREFIX = "tinytrain-"
_LOCK = "build.lock"


@contextmanager
def build_folder() -> Iterator[Path]:
    """A new folder among the temporary ones, removed at the end; what killed processes left there is removed at the start.

    Who lives holds a lock in its folder, which the operating system takes back from a process that was killed.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{_LOCK}"):
        _remove_if_left(left)
    folder, mine = _locked()
    with mine:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _locked() -> tuple[Path, IO[str]]:
    """A folder of this process with its lock; another one where somebody took it for left behind before it was locked."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = (folder / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()


def _remove_if_left(lock: Path) -> None:
    with contextlib.suppress(OSError), lock.open() as held:  # another user's, held, or removed by now
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent, ignore_errors=True)
