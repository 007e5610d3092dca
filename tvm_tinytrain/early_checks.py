"""What is checked before long work begins: where it is to write, and numbers that nothing would come of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tvm_tinytrain.errors import ArchiveError, check_least


def check_output(*paths: Path | None) -> None:
    """Raise ArchiveError where a file cannot be written: it is a folder, or its folder cannot be made (every command makes it)."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise ArchiveError("output", str(path), "a folder", "a file's path", "add a file's name")
        check_folder(path.absolute().parent)


def check_folder(path: Path | None) -> None:
    """Raise ArchiveError where a folder cannot be made or written to: a file stands in its place or above it, or it is not ours."""
    if path is None:
        return
    places = [path.absolute(), *path.absolute().parents]
    first = next(place for place in places if place.exists() or place.is_symlink())
    if not first.is_dir():
        hint = "remove the file, or choose another folder"
        raise ArchiveError("output", str(first), "a file", "a folder", hint)
    if not os.access(first, os.W_OK | os.X_OK):
        hint = "choose another folder, or ask for the right to write"
        raise ArchiveError("output", str(first), "no right to write", "a folder of your own", hint)


def check_options(stage: str, least: Mapping[str, tuple[int, int]]) -> None:
    """Raise PlanError for the first option whose value is too small. least: {option: (value, least)}."""
    check_least(stage, least, f"see tinytrain {stage} --help")
