"""Checkpoint files on the host: round trip, metadata, refusals with their words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import DIGEST, random_bitmap, random_table
from tvm_tinytrain.errors import CheckpointError
from tvm_tinytrain.micro.checkpoint import (
    Checkpoint,
    CheckpointLayout,
    SavedTensor,
    read_checkpoint,
    write_checkpoint,
)

LAYOUT = CheckpointLayout(DIGEST, (3, 6), (SavedTensor("w", 0, 8), SavedTensor("b", 1, 4)))
ROWS = {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array([3.0, 4.0], np.float32)}
PLAN = bytes([0b10000010, 0b1])  # channel 1 of the first, 4 and 5 of the second


def made() -> Checkpoint:
    return Checkpoint.of(LAYOUT, PLAN, ROWS)


def test_file_round_trip(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a.tt", made())
    assert read_checkpoint(path) == read_checkpoint(path, LAYOUT) == made()
    assert path.read_bytes() == made().to_bytes() and len(path.read_bytes()) == 40 + 4 + 16 + 4
    assert [p.name for p in tmp_path.iterdir()] == ["a.tt"]
    rows = read_checkpoint(path).rows(LAYOUT)
    assert rows["w"].tolist() == [[1, 2]] and rows["b"].tolist() == [[3], [4]]
    assert LAYOUT.trained(PLAN) == ((1,), (4, 5))


def test_other_libraries() -> None:
    for layout, words in (
        (
            CheckpointLayout("f" * 16, LAYOUT.channels, LAYOUT.tensors),
            f"library: found {DIGEST}; allowed ffff",
        ),
        (CheckpointLayout(DIGEST, (3, 7), LAYOUT.tensors), "channels: found 9"),
        (CheckpointLayout(DIGEST, (3, 6), LAYOUT.tensors[:1]), "rows: found 16 bytes; allowed 8 bytes"),
    ):
        with pytest.raises(CheckpointError, match=words):
            made().rows(layout)


def test_rows_that_do_not_fit() -> None:
    for rows in ({"w": ROWS["w"]}, {**ROWS, "b": np.zeros(3, np.float32)}):
        with pytest.raises(CheckpointError, match=r"rows of b: found (0|12) bytes; allowed 8 bytes"):
            Checkpoint.of(LAYOUT, PLAN, rows)
    for plan in (b"\0\0", b"\0\2", b"\1", b"\1\0\0"):
        empty = {"w": np.zeros((1, 2), np.float32) if plan[0] else np.zeros(0, np.float32), "b": np.zeros(0)}
        with pytest.raises(CheckpointError):
            Checkpoint.of(LAYOUT, plan, empty)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="readable file"):
        read_checkpoint(tmp_path / "missing.tt")
    (tmp_path / "no").write_text("a file")
    with pytest.raises(CheckpointError, match="writable path"):
        write_checkpoint(tmp_path / "no" / "folder.tt", made())
    for name, data in {"empty": b"", "text": b"hello" * 20, "cut": made().to_bytes()[:-1]}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError):
            read_checkpoint(tmp_path / name)


def test_layout_of_metadata() -> None:
    metadata: dict[str, Any] = {
        "digest": DIGEST,
        "adaptive": {
            "candidates": [{"channels": 3}, {"channels": 6}],
            "rows": [
                {"name": "channels_0", "candidate": 0, "row_bytes": 4, "kind": "channels"},
                {"name": "w", "candidate": 0, "row_bytes": 8, "kind": "copy"},
                {"name": "m_w", "candidate": 0, "row_bytes": 8, "kind": "zero"},
                {"name": "b", "candidate": 1, "row_bytes": 4, "kind": "copy"},
            ],
        },
    }
    assert CheckpointLayout.from_metadata(metadata) == LAYOUT
    for broken in ({}, {"adaptive": None}, {**metadata, "adaptive": {"candidates": []}}):
        with pytest.raises(CheckpointError, match="task-adaptive library"):
            CheckpointLayout.from_metadata(broken)


@pytest.mark.parametrize("seed", range(10))
def test_flipped_bits_and_cuts(seed: int) -> None:
    """A hundred a table; the device refuses the same in test_device_checkpoint."""
    rng = np.random.default_rng(seed)
    table = random_table(seed)
    bitmap = random_bitmap(table, rng)
    trained = table.layout.trained(bitmap)
    rows = {
        t.name: rng.random((len(trained[t.candidate]), t.row_bytes // 4), np.float32)
        for t in table.layout.tensors
    }
    data = Checkpoint.of(table.layout, bitmap, rows).to_bytes()
    assert Checkpoint.from_bytes(data).to_bytes() == data
    for _ in range(100):
        raw = bytearray(data)
        if rng.random() < 0.5:
            raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
        else:
            del raw[int(rng.integers(len(raw))) :]
        with pytest.raises(CheckpointError):
            Checkpoint.from_bytes(bytes(raw))
