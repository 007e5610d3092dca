"""A row table with its plan and arena as a process, under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tvm_tinytrain.micro.checkpoint import CheckpointLayout, SavedTensor

HERE = Path(__file__).parent
KINDS = {"zero": 0, "copy": 1, "channels": 2}
OK, SMALL, BAD_VALUE, RANGE, STATE = 0, -2, -4, -7, -10
TORN, VERSION, FOREIGN, SINK_FULL = -12, -13, -14, 77
DIGEST = "0123456789abcdef"


@dataclass(frozen=True)
class Row:
    """A tensor with one row for each trained channel."""

    candidate: int
    kind: str
    row_bytes: int


@dataclass(frozen=True)
class Table:
    """Row tensors of a library; the arena takes all of them unless it is made smaller."""

    channels: tuple[int, ...]
    activation_bytes: tuple[int, ...]
    rows: tuple[Row, ...]
    digest: str = DIGEST
    missing_bytes: int = 0
    seed: int = field(default=0, compare=False)

    @property
    def arena_bytes(self) -> int:
        everything = sum(self.channels[r.candidate] * r.row_bytes for r in self.rows)
        return max(self.activation_bytes) + everything - self.missing_bytes

    @property
    def bitmap_bytes(self) -> int:
        return (sum(self.channels) + 7) // 8

    @property
    def layout(self) -> CheckpointLayout:
        saved = [
            SavedTensor(f"tensor_{i}", r.candidate, r.row_bytes)
            for i, r in enumerate(self.rows)
            if r.kind == "copy"
        ]
        return CheckpointLayout(self.digest, self.channels, tuple(saved))

    def to_bytes(self) -> bytes:
        rng = np.random.default_rng(self.seed)
        words = [len(self.channels), len(self.rows), self.arena_bytes, *self.channels]
        out = struct.pack(f"<{len(words)}I", *words)
        out += struct.pack(f"<{len(self.activation_bytes)}I", *self.activation_bytes)
        for row in self.rows:
            out += struct.pack("<3I", row.candidate, KINDS[row.kind], row.row_bytes)
            if row.kind == "copy":
                out += rng.bytes(self.channels[row.candidate] * row.row_bytes)
        return out + self.digest.encode()


def random_table(seed: int, *, digest: str = DIGEST, missing_bytes: int = 0) -> Table:
    """Some layers with weights, sometimes a bias, optimizer state and the channel list."""
    rng = np.random.default_rng(seed)
    channels = tuple(int(c) for c in rng.integers(1, 40, rng.integers(1, 7)))
    rows = []
    for candidate in range(len(channels)):
        weight = 4 * int(rng.integers(1, 30))
        rows += [
            Row(candidate, "channels", 4),
            Row(candidate, "copy", weight),
            Row(candidate, "zero", weight),
        ]
        if rng.random() < 0.7:
            rows += [Row(candidate, "copy", 4), Row(candidate, "zero", 8)]
    activation = tuple(8 * int(v) for v in np.sort(rng.integers(0, 60, len(channels) + 1))[::-1])
    return Table(channels, activation, tuple(rows), digest, missing_bytes, seed)


class Process:
    """The driver with one table."""

    def __init__(self, program: Path, table: Table) -> None:
        self.table = table
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._stdin.write(table.to_bytes())

    def ask(self, command: str, data: bytes = b"", count: int | None = None) -> int:
        self._stdin.write(command.encode() + struct.pack("<I", len(data) if count is None else count) + data)
        self._stdin.flush()
        return self._word()

    def _word(self) -> int:
        raw = self._stdout.read(4)
        assert len(raw) == 4, "the driver died: see the sanitizer's report on stderr"
        return int(struct.unpack("<i", raw)[0])

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """The plan's words and the arena's bytes."""
        self.ask("g")
        words = 3 + len(self.table.channels) + len(self.table.rows) + 4
        plan = np.frombuffer(self._stdout.read(4 * words), np.uint32)
        return plan, np.frombuffer(self._stdout.read(self.table.arena_bytes), np.uint8)

    def save(self, command: str, room: int) -> tuple[int, bytes]:
        """Status and bytes of "w" (write) or "s" (save to a sink)."""
        status = self.ask(command, count=room)
        return status, self._stdout.read(self._word())

    def checkpoint(self) -> bytes:
        status, data = self.save("w", self.ask("z"))
        assert status == OK
        return data

    def views(self, arena: np.ndarray, plan: np.ndarray) -> list[np.ndarray]:
        """The rows of each tensor, as bytes [trained channels, row_bytes] that share memory with `arena`."""
        found, count = [], len(self.table.channels)
        for i, row in enumerate(self.table.rows):
            k, offset = int(plan[3 + row.candidate]), int(plan[3 + count + i])
            found.append(arena[offset : offset + k * row.row_bytes].reshape(k, row.row_bytes))
        return found

    def close(self) -> int:
        self._stdin.close()
        return self._process.wait(20)


@contextmanager
def process(program: Path, table: Table) -> Iterator[Process]:
    made = Process(program, table)
    yield made
    assert made.close() == 0


def random_bitmap(table: Table, rng: np.random.Generator) -> bytes:
    """A plan of at least one channel."""
    bits = rng.random(sum(table.channels)) < rng.choice([0.05, 0.3, 0.9])
    bits[rng.integers(len(bits))] = True
    return np.packbits(bits, bitorder="little").tobytes()


def train(driver: Process, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Put noise everywhere but into the channel lists; returns the saved tensors' rows as float32."""
    plan, arena = driver.state()
    changed = np.frombuffer(rng.bytes(len(arena)), np.uint8).copy()
    lists = zip(driver.table.rows, driver.views(changed, plan), driver.views(arena, plan), strict=True)
    for row, new, old in lists:
        if row.kind == "channels":
            new[...] = old
    driver.ask("p", changed.tobytes())
    rows = enumerate(zip(driver.table.rows, driver.views(changed, plan), strict=True))
    return {f"tensor_{i}": view.copy().view(np.float32) for i, (row, view) in rows if row.kind == "copy"}
