"""A project goes into a folder whole or not at all, and what others have there stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.boards.conftest import hand_written
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.micro import generate_project
from tvm_tinytrain.micro.exports import export_project


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write(folder: Path, kind: str, **files: bytes) -> None:
    """Write a project of a kind; files: more of its library, their names with a point for each double underscore."""
    more = {name.replace("__", "."): content for name, content in files.items()}
    library = hand_written(**more)
    if kind == "board":
        generate_project(library, "host", folder)
    else:
        export_project(library, kind, folder)


@pytest.mark.parametrize("kind", ["board", "bare-metal", "zephyr", "arduino", "cmake"])
def test_what_others_have_there_stays(kind: str, tmp_path: Path) -> None:
    mine = {"library/thesis.txt": b"years", "runtime/log.txt": b"days", "src/mine.c": b"int x;"}
    for name, content in mine.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    write(tmp_path, kind)
    assert mine.items() <= contents(tmp_path).items()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    with pytest.raises(ArchiveError, match=r"README\.md, of no earlier project; .* choose another folder"):
        write(tmp_path / "other", kind)
    assert contents(tmp_path / "other") == {"README.md": b"mine"}


@pytest.mark.parametrize("kind", ["board", "bare-metal", "arduino"])
def test_an_earlier_project_is_replaced(kind: str, tmp_path: Path) -> None:
    write(tmp_path / "twice", kind, more__c=b"int more;")
    whole = contents(tmp_path / "twice")
    write(tmp_path / "twice", kind)
    write(tmp_path / "once", kind)
    assert contents(tmp_path / "twice") == contents(tmp_path / "once")
    assert any(name.endswith("more.c") for name in whole)


def test_a_project_of_another_kind_is_somebody_elses(tmp_path: Path) -> None:
    write(tmp_path / "board", "board")
    with pytest.raises(ArchiveError, match="of no earlier project"):
        write(tmp_path / "board", "cmake")


@pytest.mark.parametrize("kind", ["board", "bare-metal"])
def test_where_it_cannot_be_written_nothing_is_left(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "runtime").write_text("a file")
    with pytest.raises(ArchiveError, match="writable folder"):
        write(tmp_path / "a", kind)
    assert contents(tmp_path / "a") == {"runtime": b"a file"} and not (tmp_path / "a" / "library").exists()
    (tmp_path / "a" / "runtime").unlink()
    write(tmp_path / "a", kind)
    before, wrote = contents(tmp_path / "a"), Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "tinytrain.h" in path.name:
            raise OSError(28, "No space left on device")
        return wrote(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArchiveError, match="No space left on device"):
        write(tmp_path / "a", kind, more__c=b"int more;")
    with pytest.raises(ArchiveError, match="No space left on device"):
        write(tmp_path / "new", kind)
    assert contents(tmp_path / "a") == before and not (tmp_path / "new").exists()


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    write(tmp_path, "arduino")
    (tmp_path / ".tinytrain.json").write_text("{")
    with pytest.raises(ArchiveError, match=r"\.tinytrain\.json: found .*; allowed the names"):
        write(tmp_path, "arduino")
