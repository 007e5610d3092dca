"""benchmarks/memory.py without a build: what it checks, and how an interrupted run goes on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import Report
from benchmarks.memory import VARIANTS, check_rows, earlier_rows
from benchmarks.memory_session import _needed, _request, _trained


def options(path: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"json": path, "resume": True, "size": 48, "board": "host", "plan_only": False, **more}
    )


def rows(**last: Any) -> list[dict[str, Any]]:
    """One network and method in all variants; ``last`` changes the last row."""
    row = {
        "planned_bytes": 1000, "lower_bound_bytes": 1000, "forward_bytes": 900, "macs_step": 100, "difference_to_plain": 0.0,
        "measured_bytes": 1100, "stack_limit_bytes": 200,
    }  # fmt: skip
    found = [{"variant": variant, **row} for variant in VARIANTS]
    found[-1] |= last
    return found


def failed(tmp_path: Path, **last: Any) -> list[str]:
    report = Report(options(tmp_path / "memory.json"))
    check_rows(report, "mcunet", "TinyTrain", rows(**last))
    return [check.name for check in report.checks if not check.ok]


def test_every_figure_is_checked(tmp_path: Path) -> None:
    assert failed(tmp_path) == []
    for change, name in (
        ({"planned_bytes": 1020}, "planned / lower bound"),
        ({"planned_bytes": 1020}, "recompute, planned"),
        ({"measured_bytes": 1201}, "measured"),
        ({"difference_to_plain": 2e-6}, "largest difference to plain"),
        ({"planned_bytes": 10**6, "lower_bound_bytes": 10**6}, "step"),
    ):
        assert any(name in found for found in failed(tmp_path, **change)), name


def test_a_run_goes_on_with_rows_of_the_same_options_only(tmp_path: Path) -> None:
    report = Report(options(tmp_path / "memory.json"))
    report.rows += rows()
    report.save()
    assert earlier_rows(report.options) == json.loads(json.dumps(rows()))
    assert earlier_rows(options(tmp_path / "memory.json", size=64)) == []
    assert earlier_rows(options(tmp_path / "memory.json", resume=False)) == []
    assert earlier_rows(options(tmp_path / "other.json")) == []


ADAPTIVE = {
    "candidates": [
        {"layer": 3, "channels": 2, "weights": 20, "channel_bytes": 200},
        {"layer": 5, "channels": 4, "weights": 12, "channel_bytes": 50},
    ],
    "activation_bytes": [1000, 800, 700],
}


def test_a_session_asks_for_the_channels_of_most_potential_per_weight() -> None:
    import numpy as np

    potentials = {3: np.array([1.0, 90.0]), 5: np.array([3.0, 0.5, 9.0, 0.1])}
    chosen = _request(ADAPTIVE, potentials, 0, 13)
    assert chosen is not None
    assert [c.tolist() for c in chosen] == [[0, 1], [0, 0, 1, 0]]
    assert _needed(ADAPTIVE, chosen, 0) == 1000 + 200 + 50
    later = _request(ADAPTIVE, potentials, 1, 6)
    assert later is not None and [c.tolist() for c in later] == [[0, 0], [1, 0, 1, 0]]
    assert _needed(ADAPTIVE, later, 1) == 800 + 100
    assert _request(ADAPTIVE, potentials, 1, 13) is None
    assert _trained(ADAPTIVE, np.array([0, 0, 0, 1, 3])) == 10 + 9
