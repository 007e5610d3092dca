"""A small version of benchmarks/boards.py and benchmarks/fuzz.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import boards, fuzz


@pytest.mark.host_compiler
@pytest.mark.emulator
def test_one_adaptation_on_two_boards_and_a_link(tmp_path: Path) -> None:
    path = tmp_path / "boards.json"
    options = ["--networks", "ds_cnn", "--iterations", "1", "--json", str(path)]
    assert boards.main([*options, "--boards", "host,mps2-an386,stm32f746g-disco"]) == 0
    rows = {row["board"]: row for row in json.loads(path.read_text())["rows"]}
    assert rows["mps2-an386"]["plan_digest"] == rows["host"]["plan_digest"]
    assert rows["mps2-an386"]["trained_rows"] > 0 and rows["mps2-an386"]["accumulate_instructions"] > 1000
    assert "plan_digest" not in rows["stm32f746g-disco"] and rows["stm32f746g-disco"]["fits"]


@pytest.mark.host_compiler
def test_the_fuzzer_counts_what_it_feeds(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.json"
    assert fuzz.main(["--inputs", "2000", "--json", str(path)]) == 0
    parts = json.loads(path.read_text())["rows"]
    assert [row["findings"] for row in parts] == [0, 0, 0]
    assert all(row["inputs"] >= 2000 for row in parts)
