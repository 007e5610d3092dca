"""Journals: damaged lines are measured again, another search's file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.schedules.journal import Journal, Outcome

HEAD = {"workload": "a", "seed": 0, "unit": "instructions"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "a.jsonl", HEAD)
    journal.add({"a": 1}, Outcome(5.0))
    journal.add({"a": 2}, Outcome(4.0))
    journal.finish(2)
    return journal.path


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\0" * 50,
        b'{"cost": 3.0, "fail{"cost": 3.0, "failure": "", "knobs": "{\\"a\\": 3}"}',
        b"\xff\xfe",
        b"[1]",
        b"{}",
        b"null",
        b'{"finished": "x"}',
        b'{"finished": 9, "knobs": "{}"}',
        b'{"cost": "x", "failure": "", "knobs": "{\\"a\\": 3}"}',
        b'{"cost": NaN, "failure": "", "knobs": "{\\"a\\": 3}"}',
        b'{"cost": 1.0, "failure": "", "knobs": "{\\"a\\": 3.5}"}',
        b'{"cost": 1.0, "failure": "", "knobs": "[3]"}',
        b'{"cost": null, "failure": null, "knobs": "{\\"a\\": 3}"}',
    ],
)
def test_a_damaged_line_is_measured_again(path: Path, line: bytes) -> None:
    """What stood in it is not known: the search comes to its end once more."""
    whole = path.read_bytes()
    head, first, *rest = whole.splitlines(keepends=True)
    path.write_bytes(head + first + line + b"\n" + b"".join(rest))
    found = Journal(path, HEAD)
    assert found.outcomes == {'{"a": 1}': Outcome(5.0), '{"a": 2}': Outcome(4.0)}
    assert found.finished == 0 and found.best() == ({"a": 2}, 4.0)
    assert path.read_bytes() == whole, "it is gone from the file"


def test_an_undamaged_journal_is_at_its_end(path: Path) -> None:
    assert Journal(path, HEAD).finished == 2
    path.write_bytes(path.read_bytes() + b'{"cost": 3.0, "fai')
    assert Journal(path, HEAD).finished == 2, "only what comes after the end was cut off"


def test_another_search_is_named_by_what_differs(path: Path) -> None:
    with pytest.raises(
        ArchiveError, match=r"another search: found {'seed': 0}; allowed {'seed': 1}; use another"
    ):
        Journal(path, {**HEAD, "seed": 1})
    with pytest.raises(ArchiveError, match=r"found {'core': None}; allowed {'core': 'cortex-m7'}"):
        Journal(path, {**HEAD, "core": "cortex-m7"})


@pytest.mark.parametrize("content", [b"garbage\n", b"[]\n", b'{"search": 1}\n', b"\0" * 9 + b"\n"])
def test_a_file_that_is_no_journal_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="allowed a journal of this search"):
        Journal(path, HEAD)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"a\.jsonl/b\.jsonl"):
        Journal(path / "b.jsonl", HEAD)
    journal = Journal(tmp_path / "b.jsonl", HEAD)
    journal.path.unlink()
    journal.path.mkdir()
    with pytest.raises(ArchiveError, match="a file that can be written"):
        journal.add({"a": 1}, Outcome(5.0))
