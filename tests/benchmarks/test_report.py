"""The report that all benchmarks share: JSON form, exit code, tables."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import Report, number, parse, parser, print_table


def report_of(*arguments: str) -> Report:
    made = parser("sample", "What it does.\n\nMore about it.")
    made.add_argument("--episodes", type=int, default=5)
    return Report(parse(made, arguments))


def test_json_form(tmp_path: Path) -> None:
    path = tmp_path / "build" / "sample.json"
    report = report_of("--json", str(path), "--episodes", "3")
    report.rows.append({"peak_bytes": np.int64(12), "ratio": Fraction(1, 4)})
    report.at_most("peak", 20, 12, "bytes")
    report.at_least("accuracy", 0.5, 0.75)
    report.equal("plan", "abc", "abc")
    assert report.finish() == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert list(written) == ["options", "versions", "rows", "checks"]
    assert written["options"] == {"episodes": 3}
    assert {"python", "numpy", "apache-tvm"} <= set(written["versions"])
    assert written["rows"] == [{"peak_bytes": 12, "ratio": "1/4"}]
    assert written["checks"][0] == {"name": "peak", "asked": "<= 20 bytes", "got": "12 bytes", "ok": True}
    assert [path.name for path in path.parent.iterdir()] == ["sample.json"]


def test_a_failed_check_is_kept_and_makes_the_exit_code_1(tmp_path: Path) -> None:
    report = report_of("--json", str(tmp_path / "sample.json"))
    assert not report.at_most("peak", 20, 21)
    assert report.at_most("time", 20, 3)
    assert report.finish() == 1
    written = json.loads((tmp_path / "sample.json").read_text(encoding="utf-8"))
    assert [check["ok"] for check in written["checks"]] == [False, True]


def test_an_exception_fails_its_check_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of()
    with report.attempt("emulator", "answers"):
        raise RuntimeError("silent")
    with report.attempt("host"):
        report.check("host", "works", "works", True)
    assert [(check.name, check.ok) for check in report.checks] == [("emulator", False), ("host", True)]
    assert report.checks[0].got == "RuntimeError: silent"
    assert report.finish() == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_check_is_a_failure() -> None:
    assert report_of().finish() == 1


def test_undefined_numbers_are_not_written(tmp_path: Path) -> None:
    report = report_of("--json", str(tmp_path / "sample.json"))
    report.rows.append({"seconds": float("nan")})
    with pytest.raises(ValueError):
        report.save()
    assert not list(tmp_path.iterdir())


def test_tables_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Wide", ["name", "value"], [["x" * 200, 1_234_567], ["y", None]])
    out = capsys.readouterr().out
    assert "x" * 200 in out and "1,234,567" in out and "–" in out


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234, "1,234"), (0.123456, "0.1235"), (123456.7, "123,457"), (None, "–"), (True, "True"), ("a", "a")],
)
def test_numbers(value: object, text: str) -> None:
    assert number(value) == text
