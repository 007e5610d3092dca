"""Checkpoints of the C: the same bytes as the host's, all or nothing on load, damage refused on both sides."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import (
    BAD_VALUE,
    FOREIGN,
    OK,
    RANGE,
    SINK_FULL,
    SMALL,
    STATE,
    TORN,
    VERSION,
    Process,
    process,
    random_bitmap,
    random_table,
    train,
)
from tvm_tinytrain.errors import CheckpointError
from tvm_tinytrain.micro.checkpoint import Checkpoint

pytestmark = pytest.mark.host_compiler
TRIALS = 1000


@pytest.mark.parametrize("seed", range(25))
def test_save_and_load(program: Path, seed: int) -> None:
    """Device → bytes = host's bytes; bytes → another device gives rows back and clears what belongs to them."""
    rng = np.random.default_rng(seed)
    table = random_table(seed)
    with process(program, table) as first, process(program, replace(table, seed=99)) as second:
        bitmap = random_bitmap(table, rng)
        assert first.ask("i", bitmap) == OK
        rows = train(first, rng)
        data = first.checkpoint()
        assert data == Checkpoint.of(table.layout, bitmap, rows).to_bytes()
        assert first.save("s", len(data)) == (OK, data)
        assert second.ask("i", random_bitmap(table, rng)) == OK
        train(second, rng)
        assert second.ask("c", data) == OK
        assert second.ask("l", data) == OK
        plan, arena = second.state()
        assert np.array_equal(plan, first.state()[0])
        for i, (row, view) in enumerate(zip(table.rows, second.views(arena, plan), strict=True)):
            if row.kind == "copy":
                assert view.tobytes() == rows[f"tensor_{i}"].tobytes()
            elif row.kind == "zero":
                assert not view.any()
        assert second.checkpoint() == data
        read = Checkpoint.from_bytes(data)
        assert read.bitmap == bitmap
        for name, values in read.rows(table.layout).items():
            assert values.tobytes() == rows[name].tobytes()


def saved(driver: Process, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    assert driver.ask("i", random_bitmap(driver.table, rng)) == OK
    train(driver, rng)
    return driver.checkpoint()


def damaged(rng: np.random.Generator, data: bytes, older: bytes) -> bytes:
    """One accident: flipped bits, a cut, an interrupted write, a lost or a repeated piece."""
    raw, at = bytearray(data), int(rng.integers(len(data)))
    accident = rng.integers(6)
    if accident == 0:
        raw[at] ^= 1 << int(rng.integers(8))
    elif accident == 1:
        for _ in range(int(rng.integers(2, 30))):
            raw[int(rng.integers(len(raw)))] ^= int(rng.integers(1, 256))
    elif accident == 2:
        del raw[at:]
    elif accident == 3:  # the rest of the flash page, erased or from the checkpoint before
        raw[at:] = (older[at:] or b"\xff") if rng.random() < 0.5 else b"\xff" * (len(raw) - at)
    elif accident == 4:
        del raw[at : at + int(rng.integers(1, 40))]
    else:
        raw[at:at] = raw[max(0, at - 16) : at] or b"\0"
    return bytes(raw)


def test_a_thousand_accidents(program: Path) -> None:
    """Each is refused by the device, which changes nothing, and by the host."""
    rng = np.random.default_rng(7)
    with process(program, random_table(3)) as driver:
        older, data = saved(driver, 1), saved(driver, 2)
        before = [part.copy() for part in driver.state()]
        for _ in range(TRIALS):
            raw = damaged(rng, data, older)
            if raw in (data, older) or raw.startswith(data):
                raw = bytes([data[0] ^ 1]) + data[1:]
            status = driver.ask("l", raw)
            assert status in (TORN, VERSION), status
            assert driver.ask("c", raw) == status
            with pytest.raises(CheckpointError):
                Checkpoint.from_bytes(raw)
        assert all(np.array_equal(a, b) for a, b in zip(before, driver.state(), strict=True))
        assert driver.ask("l", data) == OK


def test_every_single_bit_and_every_length(program: Path) -> None:
    with process(program, random_table(12)) as driver:
        data = saved(driver, 0)
        for bit in range(8 * min(len(data), 400)):
            raw = bytearray(data)
            raw[bit >> 3] ^= 1 << (bit & 7)
            assert driver.ask("c", bytes(raw)) in (TORN, VERSION)
        for length in range(len(data)):
            assert driver.ask("c", data[:length]) == TORN
        assert driver.ask("c", data + b"\xff" * 100) == OK  # the rest of a flash page
        with pytest.raises(CheckpointError):
            Checkpoint.from_bytes(data + b"\xff")


def resealed(data: bytes, at: int, new: bytes) -> bytes:
    """Other bytes with a CRC that fits."""
    body = data[:at] + new + data[at + len(new) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("what", "status"),
    [
        (lambda d: resealed(d, 0, b"TTCL"), VERSION),
        (lambda d: resealed(d, 4, b"\2"), VERSION),
        (lambda d: resealed(d, 6, b"\x2c"), VERSION),
        (lambda d: resealed(d, 8, b"fedcba9876543210"), FOREIGN),
        (lambda d: resealed(d, 8, b"\xff"), FOREIGN),
        (lambda d: resealed(d, 28, struct.pack("<I", 0)), BAD_VALUE),
        (lambda d: resealed(d, 28, struct.pack("<I", struct.unpack_from("<I", d, 28)[0] + 1)), BAD_VALUE),
        (lambda d: resealed(d, 32, struct.pack("<I", 0xFFFFFFFF)), TORN),
        (lambda d: resealed(d, 24, struct.pack("<I", 0xFFFFFFFF)), TORN),
        (lambda d: resealed(d, 36, struct.pack("<I", 44)), TORN),
        (lambda d: resealed(d, 40, bytes([d[40] ^ 1])), BAD_VALUE),
    ],
)
def test_valid_crc_and_wrong_content(program: Path, what: Callable[[bytes], bytes], status: int) -> None:
    table = random_table(5)
    with process(program, table) as driver:
        raw = what(saved(driver, 4))
        before = driver.state()
        assert driver.ask("l", raw) == status
        assert all(np.array_equal(a, b) for a, b in zip(before, driver.state(), strict=True))
        with pytest.raises(CheckpointError):
            Checkpoint.from_bytes(raw).check(table.layout)


def test_a_bit_behind_the_last_channel(program: Path) -> None:
    table = next(t for t in map(random_table, range(99)) if sum(t.channels) % 32)
    with process(program, table) as driver:
        data = saved(driver, 1)
        last = 40 + (sum(table.channels) + 31) // 32 * 4 - 1
        raw = resealed(data, last, bytes([data[last] | 0x80]))
        assert driver.ask("c", raw) == BAD_VALUE
        with pytest.raises(CheckpointError, match="trained channels"):
            Checkpoint.from_bytes(raw)


def test_another_library(program: Path) -> None:
    table = random_table(8)
    others = [replace(table, digest="0" * 16), replace(random_table(9), digest=table.digest)]
    wider = [replace(r, row_bytes=r.row_bytes + 4 * (r.kind == "copy")) for r in table.rows]
    others.append(replace(table, rows=tuple(wider)))
    with process(program, table) as driver:
        data = saved(driver, 0)
    for other, status in zip(others, (FOREIGN, FOREIGN, BAD_VALUE), strict=True):
        with process(program, other) as driver:
            before = driver.state()
            assert driver.ask("l", data) == status
            assert all(np.array_equal(a, b) for a, b in zip(before, driver.state(), strict=True))
            with pytest.raises(CheckpointError):
                Checkpoint.from_bytes(data).check(other.layout)


def test_arena_too_small(program: Path) -> None:
    table = random_table(10)
    everything = np.packbits(np.ones(sum(table.channels), bool), bitorder="little").tobytes()
    with process(program, table) as driver:
        assert driver.ask("i", everything) == OK
        data = driver.checkpoint()
    with process(program, replace(table, missing_bytes=4)) as driver:
        before = driver.state()
        assert driver.ask("c", data) == OK
        assert driver.ask("l", data) == SMALL
        assert all(np.array_equal(a, b) for a, b in zip(before, driver.state(), strict=True))


def test_saves_that_cannot_be(program: Path) -> None:
    table = random_table(11)
    with process(program, table) as driver:
        assert driver.ask("z") == 0
        assert driver.save("w", 9999) == (STATE, b"") and driver.save("s", 9999) == (STATE, b"")
        data = saved(driver, 0)
        assert driver.save("w", len(data) - 1) == (RANGE, b"")
        for room in (0, 3, 50, len(data) - 1):
            status, taken = driver.save("s", room)
            assert status == SINK_FULL and data.startswith(taken) and len(taken) <= room
        plan, arena = driver.state()
        for channel in (1 << 20, -1):
            broken = arena.copy()
            views = zip(table.rows, driver.views(broken, plan), strict=True)
            some = next(v for r, v in views if r.kind == "channels" and len(v))
            some[-1] = np.frombuffer(struct.pack("<i", channel), np.uint8)
            driver.ask("p", broken.tobytes())
            assert driver.save("s", len(data)) == (BAD_VALUE, b"")
        driver.ask("p", arena.tobytes())
        assert driver.checkpoint() == data
        driver.ask("r")
        assert driver.ask("z") == 0
