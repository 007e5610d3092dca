"""Folders of searches: gone at the end, kept while their search lives, cleared by the next one where it was killed."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tvm_tinytrain.schedules import scratch
from tvm_tinytrain.schedules.scratch import scratch_folder

# another process; run by its path, because the package would import TVM
_HOLD = """
import runpy, sys
from pathlib import Path
with runpy.run_path(sys.argv[1])["scratch_folder"](Path(sys.argv[2])) as folder:
    (folder / "image").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def folders(parent: Path) -> list[Path]:
    return sorted(parent.glob("scratch-*"))


def test_it_is_gone_at_the_end_even_after_an_error(tmp_path: Path) -> None:
    def fails() -> None:
        with scratch_folder(tmp_path / "new") as folder:
            (folder / "image").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert folders(tmp_path / "new") == []


def test_a_live_one_is_kept_and_a_killed_one_cleared(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, scratch.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with scratch_folder(tmp_path) as mine:
            assert folders(tmp_path) == sorted([mine, theirs]) and (theirs / "image").is_dir()
        other.kill()
    assert folders(tmp_path) == [theirs], "nobody cleared it yet"
    (tmp_path / "scratch-cut").mkdir()  # killed before it had a lock
    with scratch_folder(tmp_path) as mine:
        assert folders(tmp_path) == [mine]


def test_many_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    def one(index: int) -> bool:
        with scratch_folder(tmp_path) as folder:
            (folder / "mine").write_text(str(index))
            others = [scratch_folder(tmp_path) for _ in range(3)]
            for other in others:
                with other:
                    pass
            return (folder / "mine").read_text() == str(index)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(40)))
    assert folders(tmp_path) == []
