"""``tinytrain report``: rows of accuracies that are incomplete, names that matplotlib or a terminal would not take."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_tinytrain as tt
from tests.commands.refused import refused
from tests.reporting.test_page import ROWS
from tvm_tinytrain.cli import main


def changed(**values: Any) -> list[dict[str, Any]]:
    """The rows of a good file, the second one with other values; ... takes a value out."""
    second = {k: v for k, v in {**ROWS[1], **values}.items() if v is not ...}
    return [ROWS[0], second, *ROWS[2:]]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rate_by": ...}, "row 1 without rate_by"),
        ({"backward_macs": ...}, "row 1 without backward_macs"),
        ({"domain": ...}, "row 1 without domain"),
        ({"accuracy": "x"}, "row 1: accuracy 'x'"),
        ({"accuracy": None}, "row 1: accuracy None"),
        ({"accuracy": float("nan")}, "row 1: accuracy nan"),
        ({"accuracy": -0.5}, "row 1: accuracy -0.5"),
        ({"accuracy": 80.0}, "row 1: accuracy 80.0, which is no share"),
        ({"method": "none"}, "rows 0 and 1: none on Signs-43 twice"),
        ({"domain": "\ud800"}, "surrogates not allowed"),
        ({"interval": "wide"}, "row 1: interval 'wide'"),
        ({"memory_bytes": None}, "row 1: memory_bytes None"),
        ({"network": 3}, "row 1: network 3"),
    ],
)
def test_incomplete_rows(
    tmp_path: Path, values: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(changed(**values)))
    words = ["report", "--html", "{}/page.html", "--accuracy", "{}/rows.json"]
    refused(capsys, tmp_path, *words, says=says)


@pytest.mark.parametrize("rows", [[], [5], {"rows": [{"method": "none"}]}, {"others": []}, 3, ["accuracy"]])
def test_no_rows(tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = ["report", "--html", "{}/page.html", "--accuracy", "{}/rows.json"]
    refused(capsys, tmp_path, *words, says="allowed rows of accuracies")


@pytest.mark.parametrize("name", ["a$b$c$ _{", r"5-way $x_1$ \frac{", r"\$", "$$"])
def test_names_with_dollars(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(changed(domain=name, method=name)))
    page = tmp_path / "page.html"
    assert main(["report", "--html", str(page), "--accuracy", str(tmp_path / "rows.json")]) == 0
    assert page.stat().st_size > 1000


def test_a_path_that_is_no_utf_8_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "utf-8", errors="strict"))
    page = tmp_path / "page\udcff.html"
    assert main(["report", "--html", str(page), "--accuracy", str(tmp_path / "rows.json")]) == 0
    assert b"wrote " in printed.getvalue() and b"page\\udcff.html" in printed.getvalue()


def test_what_only_a_page_shows_asks_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tt.build(torch.nn.Linear(4, 2), "host", example_inputs=(torch.zeros(1, 4),))
    module.export(tmp_path / "x.tar")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    for words in (["--accuracy", "{}/rows.json"], ["--session", "{}/none.json"], ["--pictures"]):
        refused(capsys, tmp_path, "report", "{}/x.tar", *words, says="--html")


def test_a_write_that_fails_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    monkeypatch.setattr("tvm_tinytrain.reporting.Report.write", full)
    words = ["report", "--html", "{}/page.html", "--accuracy", "{}/rows.json"]
    refused(capsys, tmp_path, *words, says="No space left on device")
