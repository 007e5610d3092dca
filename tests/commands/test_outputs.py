"""Where commands write: a folder in a file's place, or a file in a folder's, is refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands.refused import refused
from tvm_tinytrain.early_checks import check_folder, check_output
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.schedules.scratch import scratch_folder


@pytest.mark.parametrize(
    "words",
    [
        "compile none.pt2 -o {}/folder",
        "compile none.pt2 -o {}/file/x.tar",
        "compile none.pt2 -o {}/x.tar --dump-ir {}/file",
        "compile none.pt2 -o {}/x.tar --dump-ir {}/file/ir",
        "tune --network none.pt2 -o {}/folder",
        "tune --network none.pt2 -o {}/file/x.json",
        "tune --network none.pt2 -o {}/x.json --work {}/file",
    ],
)
def test_outputs(tmp_path: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    refused(capsys, tmp_path, *words.split(), says="error: output: ")


@pytest.mark.parametrize("option", ["--size", "--classes", "--trials"])
def test_numbers_of_tune(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "--network", "mcunet", "-o", "{}/x.json", option, "0"]
    refused(capsys, tmp_path, *words, says=f"{option}: found 0; allowed 1 or more")


def test_what_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    check_output(None, tmp_path / "new", tmp_path / "file", Path("relative"))
    check_output(tmp_path / "new" / "deep" / "file", Path("a/b"))
    check_folder(None)
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "deep")


def test_folders_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode: False
    )  # who runs the tests may be allowed everything
    with pytest.raises(ArchiveError, match="no right to write"):
        check_output(tmp_path / "x.json")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_scratch_in_a_file(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArchiveError, match="file"), scratch_folder(tmp_path / place):
        pass


@pytest.mark.parametrize("command", ["compile", "tune"])
def test_updates_that_are_no_text(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").write_bytes(b"{\xff\xfe}")
    network = ["{}/none.pt2"] if command == "compile" else ["--network", "{}/none.pt2"]
    words = [command, *network, "--update", "{}/plan.json", "-o", "{}/x.out"]
    refused(capsys, tmp_path, *words, says="plan.json")
