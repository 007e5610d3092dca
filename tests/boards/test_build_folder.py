"""Temporary folders of sessions: gone at the end, kept while their session builds, cleared by the next one where it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tvm_tinytrain.micro import Session, build_folder

# another process; run by its path, because the package would import TVM
_HOLD = """
import runpy, sys
with runpy.run_path(sys.argv[1])["build_folder"]() as folder:
    (folder / "library").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "tinytrain-tests-of-others").mkdir()
    return tmp_path


def folders(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if "others" not in path.name)


def test_a_live_one_is_kept_and_a_killed_one_cleared(fake: Any, temporary: Path) -> None:
    command = [sys.executable, "-c", _HOLD, build_folder.__file__]
    options: dict[str, Any] = {"env": {**os.environ, "TMPDIR": str(temporary)}, "text": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with build_folder.build_folder() as mine:
            assert folders(temporary) == sorted([mine.name, theirs.name]) and (theirs / "library").is_dir()
        other.kill()
    assert folders(temporary) == [theirs.name], "nobody cleared it yet"
    with Session(fake, board="host") as session:
        assert folders(temporary) == [] and session.entries
    assert (temporary / "tinytrain-tests-of-others").is_dir()


def test_many_at_once_leave_each_other_alone(temporary: Path) -> None:
    def one(index: int) -> bool:
        with build_folder.build_folder() as folder:
            (folder / "mine").write_text(str(index))
            others = [build_folder.build_folder() for _ in range(3)]
            for other in others:
                with other:
                    pass
            return (folder / "mine").read_text() == str(index)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(one, range(40)))
    assert folders(temporary) == []
