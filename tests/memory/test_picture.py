"""Pictures of a memory plan: the text to the letter, the files by what they hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tvm_tinytrain.errors import ArchiveError, ToolMissingError
from tvm_tinytrain.memory import load_plan, plan_memory, plot_plan, store_plan, text_plan
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem

PROBLEM = MemoryProblem(
    (
        Buffer("w", 16, 0, 5, kind="parameter"),
        Buffer("x", 32, 0, 3),
        Buffer("y", 32, 1, 2),
        Buffer("dy", 16, 3, 5, kind="gradient"),
    ),
    capacity=96,
)


def test_text() -> None:
    assert text_plan(PROBLEM, plan_memory(PROBLEM), width=29).splitlines() == [
        "memory plan: 4 buffers, peak 80 bytes, lower bound 80 bytes (1.0000), capacity 96 bytes",
        "* parameter  = gradient  # activation",
        " 0 ****########        | 48",
        ">1 ****################| 80",
        " 2 ****########        | 48",
        " 3 ****====            | 32",
    ]


def test_text_marks_a_lower_bound_that_was_missed() -> None:
    plan = MemoryPlan((("w", 0), ("x", 16), ("y", 64), ("dy", 16)), 96, 80)
    rows = text_plan(PROBLEM, plan, width=33).splitlines()[2:]
    assert rows[0] == " 0 ****########        !   | 48"


def test_a_kind_looks_the_same_in_every_picture() -> None:
    alone = MemoryProblem((Buffer("dy", 16, 0, 1, kind="gradient"),))
    assert text_plan(alone, plan_memory(alone)).splitlines()[1] == "= gradient"
    many = MemoryProblem(tuple(Buffer(f"b{i}", 8, 0, 1, kind=f"kind {i}") for i in range(12)))
    marks = [part[0] for part in text_plan(many, plan_memory(many)).splitlines()[1].split("  ")]
    assert set(marks) == set("#*+=o:~%x.")


def test_long_programs_are_thinned_and_keep_the_peak() -> None:
    buffers = tuple(Buffer(f"b{i}", 8 + 8 * (i == 77), i, i + 1) for i in range(200))
    rows = text_plan(MemoryProblem(buffers), plan_memory(MemoryProblem(buffers))).splitlines()[2:]
    assert len(rows) == 40
    assert [row for row in rows if row.startswith(">")] == [rows[15]]
    assert rows[15].split()[0] == ">"
    assert rows[15].split()[1] == "77"


def test_a_plan_that_was_stored_is_drawn_the_same() -> None:
    stored = json.loads(json.dumps(store_plan(PROBLEM, plan_memory(PROBLEM))))
    problem, plan = load_plan(stored)
    drawn = text_plan(PROBLEM, plan_memory(PROBLEM)).replace(", capacity 96 bytes", "")
    assert text_plan(problem, plan) == drawn
    assert load_plan(store_plan(problem, plan)) == (problem, plan)


@pytest.mark.parametrize("damage", [{"buffers": [["w", "parameter", 0]]}, {"buffers": None}, {}])
def test_a_stored_plan_that_is_none_is_refused(damage: dict[str, object]) -> None:
    stored = {"peak_bytes": 1, "lower_bound_bytes": 1} | damage
    with pytest.raises(ArchiveError, match="name, kind, offset, bytes, lower, upper"):
        load_plan(stored)


def test_no_buffers() -> None:
    problem = MemoryProblem(())
    assert text_plan(problem, plan_memory(problem)) == "memory plan: no buffers"


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_files_are_the_same_each_time(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'tvm_tinytrain[report]'")
    plan = plan_memory(PROBLEM)
    for name in ("one", "two"):
        plot_plan(PROBLEM, plan, tmp_path / (name + suffix))
    data = (tmp_path / f"one{suffix}").read_bytes()
    assert data == (tmp_path / f"two{suffix}").read_bytes()
    assert data.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ToolMissingError, match=r"pip install 'tvm_tinytrain\[report\]'"):
        plot_plan(PROBLEM, plan_memory(PROBLEM), tmp_path / "plan.png")
    assert not list(tmp_path.iterdir())
