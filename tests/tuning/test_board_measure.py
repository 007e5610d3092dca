"""Candidates on an emulated Cortex-M7: those that are wrong, fault, hang or do not fit fail, the others are measured."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tvm import tirx
from tvm.tirx.script import builder as T

from tests.schedules.kernel_cases import lower
from tvm_tinytrain.board_measure import BoardMeasure
from tvm_tinytrain.errors import ArchiveError, BoardError, TransportError
from tvm_tinytrain.passes.kernels.builder import Arg, f32, loops, make_kernel
from tvm_tinytrain.targets.boards import get_board

pytestmark = [pytest.mark.host_compiler, pytest.mark.emulator]
SIZE = 16


def doubled(emit: Callable[..., None]) -> tirx.PrimFunc:
    return make_kernel("doubled", {"size": SIZE}, [Arg("x", (SIZE,)), Arg("y", (SIZE,), role="out")], emit)


def honest(x: object, y: object) -> None:
    with loops("i", SIZE) as (i,), T.sblock("b"):
        v = T.axis.spatial(SIZE, i)
        T.buffer_store(y, x[v] + x[v], [v])  # type: ignore[index]


def wrong(x: object, y: object) -> None:
    with loops("i", SIZE) as (i,), T.sblock("b"):
        v = T.axis.spatial(SIZE, i)
        T.buffer_store(y, x[v] * f32(3.0), [v])  # type: ignore[index]


def writes_into_the_input(x: object, y: object) -> None:
    with T.serial(SIZE) as i:
        T.buffer_store(y, x[i] + x[i], [i])  # type: ignore[index]
        T.buffer_store(x, f32(0.0), [i])


def faults(x: object, y: object) -> None:
    with T.serial(1) as i:
        T.buffer_store(y, x[i], [i - 100_000_000])  # type: ignore[index]


def hangs(x: object, y: object) -> None:
    with T.serial(2_000_000_000) as i:
        T.buffer_store(y, y[i % SIZE] * f32(0.999) + x[i % SIZE], [i % SIZE])  # type: ignore[index]


def does_not_fit(x: object, y: object) -> None:
    huge = T.sblock_alloc_buffer((64 << 20,), "float32")
    with T.serial(64 << 20) as i:
        T.buffer_store(huge, x[i % SIZE], [i])  # type: ignore[index]
    with T.serial(SIZE) as i:
        T.buffer_store(y, huge[i] * f32(2.0), [i])


def unsafe(emit: Callable[..., None]) -> tirx.PrimFunc:
    """Lowered as it is: TVM's simplifier must not see that it writes out of bounds."""
    return lower({"k": doubled(emit)}, ())["k"]


def test_failures_of_some_candidates_do_not_touch_the_others() -> None:
    board, start = get_board("mps2-an500"), time.monotonic()
    assert BoardMeasure(doubled(honest), board)({"alone": unsafe(honest)})["alone"].cost is not None
    patience = 2.0 + time.monotonic() - start  # a busy machine is busy for what does not hang, too
    found = BoardMeasure(doubled(honest), board, call_s=patience)(
        {
            "first": unsafe(honest),
            "wrong": unsafe(wrong),
            "input": unsafe(writes_into_the_input),
            "faults": unsafe(faults),
            "second": unsafe(honest),
            "hangs": unsafe(hangs),
            "big": unsafe(does_not_fit),
            "third": unsafe(honest),
        }
    )
    costs = {name: o.cost for name, o in found.items() if o.cost is not None}
    assert set(costs) == {"first", "second", "third"} and len(set(costs.values())) == 1
    assert "off by" in found["wrong"].failure and found["input"].failure.startswith("x is off")
    assert all(found[name].failure for name in ("faults", "hangs", "big"))
    assert "bytes too many" in found["big"].failure


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first emulator on PATH: it runs the real one as often as ``starts`` beside it has lines, then it fails."""
    real = shutil.which("qemu-system-arm")
    script = tmp_path / "qemu-system-arm"
    script.write_text(
        f'#!/bin/sh\nread -r line < {tmp_path}/starts || exit 1\nsed -i 1d {tmp_path}/starts\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_a_board_that_does_not_start_is_no_candidates_fault(emulator: Path) -> None:
    """The first program starts, its candidate is measured and the next one faults; nothing starts after that."""
    measure = BoardMeasure(doubled(honest), get_board("mps2-an500"))
    batch = {"good": unsafe(honest), "faults": unsafe(faults), "last": unsafe(honest)}
    (emulator / "starts").write_text("once\n")
    assert set(measure(batch)) == {"good"}
    with pytest.raises(TransportError, match="mps2-an500"):
        measure(batch)
    (emulator / "starts").write_text("again\n" * 2)
    found = measure(batch)
    assert set(found) == set(batch) and found["faults"].cost is None and found["last"].cost is not None


def test_the_last_candidate_is_blamed_when_the_board_lives(emulator: Path) -> None:
    measure = BoardMeasure(doubled(honest), get_board("mps2-an500"))
    (emulator / "starts").write_text("once\n")
    with pytest.raises(TransportError):
        measure({"faults": unsafe(faults)})
    (emulator / "starts").write_text("again\n" * 2)
    assert measure({"faults": unsafe(faults)})["faults"].failure


def test_a_board_that_cannot_be_reached_is_no_candidates_fault() -> None:
    """Host code for a board that is not there: the image builds."""
    board = replace(get_board("host"), runner="ssh")
    with pytest.raises(BoardError, match="no port"):
        BoardMeasure(doubled(honest), board)({"a": unsafe(honest)})


def test_nothing_to_measure() -> None:
    assert BoardMeasure(doubled(honest), get_board("mps2-an500"))({}) == {}


def test_a_full_disk_is_no_candidates_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, name = shutil.which("arm-none-eabi-gcc"), "arm-none-eabi-gcc"
    (tmp_path / name).write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/full ] && echo "write: No space left on device" >&2 && exit 1\nexec {real} "$@"\n'
    )
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    measure = BoardMeasure(doubled(honest), get_board("mps2-an500"), folder=tmp_path / "images")
    (tmp_path / "images").mkdir()
    (tmp_path / "full").touch()
    with pytest.raises(ArchiveError, match="No space left on device"):
        measure({"one": unsafe(honest), "two": unsafe(honest)})
    (tmp_path / "full").unlink()
    assert measure({"one": unsafe(honest)})["one"].cost is not None
