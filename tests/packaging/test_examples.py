"""The examples' command lines: values of no meaning are refused in one line, before any work; each runs from anywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from examples import demo, exports, pretrain_demo

ROOT = Path(__file__).parents[2]
MAINS = {module.__name__.split(".")[1]: module.main for module in (demo, exports, pretrain_demo)}


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("work began")

    for module in (demo, exports, pretrain_demo):
        monkeypatch.setattr(module, "run", run)


@pytest.mark.parametrize(
    ("main", "option"),
    [
        (demo.main, "--epochs"),
        (demo.main, "--queries"),
        (exports.main, "--samples"),
        (pretrain_demo.main, "--steps"),
    ],
)
@pytest.mark.parametrize("value", ["0", "-2"])
def test_counts(
    main: Callable[[list[str]], int], option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([option, value])
    assert f"argument {option}: found {value}; allowed 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("name", MAINS)
def test_outputs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert MAINS[name](["--out", str(tmp_path / "file" / "new")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{name}: error: output: ") and "found a file; allowed a folder" in error


@pytest.mark.parametrize("name", MAINS)
def test_each_runs_from_anywhere(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--out" in done.stdout, done.stderr
