"""A project's files in a folder: all of them or none, those of an earlier project replaced, anybody else's left alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from tvm_tinytrain.errors import ArchiveError

_AGAIN = "choose another folder"


def write_folder(root: Path, files: Mapping[str, bytes], note: str) -> None:
    """Write `files` (path -> content) into `root`, and remove the other files that the note of an earlier project there names.

    note: the one of `files` that `with_names` made. Raises ArchiveError, before anything is changed, for a file that is there and was
    not written by an earlier project; and where the folder cannot be written.
    """
    partial, made = {name: root / f"{name}.partial" for name in files}, not root.exists()
    try:
        earlier = _names(root, note)
        theirs = sorted(name for name in files if name not in earlier and _is_there(root / name))
        if theirs:
            found, allowed = (
                f"{', '.join(theirs)}, of no earlier project",
                "no such files, or an earlier project's",
            )
            raise ArchiveError("project", str(root), found, allowed, _AGAIN)
        for name, content in files.items():
            partial[name].parent.mkdir(parents=True, exist_ok=True)
            partial[name].write_bytes(content)
        for name in sorted(files, key=lambda name: name != note):  # first whose they are
            partial[name].replace(root / name)
        for name in earlier - set(files):
            (root / name).unlink(missing_ok=True)
    except OSError as error:
        _remove(root, partial.values(), made)
        raise ArchiveError("project", str(root), error, "a writable folder", _AGAIN) from error
    except BaseException:  # Ctrl-C
        _remove(root, partial.values(), made)
        raise


def with_names(content: Mapping[str, object], files: Iterable[str], note: str) -> bytes:
    """The note of a project: `content`, and the names of all of its files."""
    return (json.dumps({**content, "files": sorted({*files, note})}, indent=1) + "\n").encode()


def _names(root: Path, note: str) -> set[str]:
    """What an earlier project wrote; nothing where there is none."""
    if not _is_there(root / note):
        return set()
    try:
        names = json.loads((root / note).read_text(encoding="utf-8"))["files"]
        found = {name for name in names if not Path(name).is_absolute() and ".." not in Path(name).parts}
    except (ValueError, KeyError, TypeError) as error:
        thing, hint = f"{root / note}", "remove it with the project's files, or choose another folder"
        raise ArchiveError(
            "project", thing, error, "the names of an earlier project's files", hint
        ) from error
    return found


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _remove(root: Path, files: Iterable[Path], made: bool) -> None:
    """Remove files that may be there, and the folders in which nothing is left; made: `root` too."""
    folders = {root} if made else set()
    for path in files:
        with suppress(OSError):
            path.unlink()
        folders |= {p for p in path.parents if p.is_relative_to(root) and p != root}
    for folder in sorted(folders, reverse=True):
        with suppress(OSError):
            folder.rmdir()
