"""Every board of the table: emulated ones run and agree, real ones link within their memories."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.boards.conftest import hand_written
from tvm_tinytrain.errors import ArchiveError, BoardError, ToolMissingError, TransportError
from tvm_tinytrain.micro import Session, generate_project
from tvm_tinytrain.micro.runners import StartOptions, flash, start
from tvm_tinytrain.targets.boards import BOARDS, Board, get_board
from tvm_tinytrain.targets.memory_map import cover, linker_script, mpu_regions, whole

X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)
Y = np.array([[1, 0, -1, 0.5]], dtype=np.float32)


def marks(board: Board) -> list[pytest.MarkDecorator]:
    needed = [tool for tool in board.all_tools if tool not in ("gcc", "openocd", "ssh", "scp")]
    return [pytest.mark.host_compiler, pytest.mark.needs(*needed)]


def boards(*, hardware: bool) -> list[Any]:
    return [pytest.param(b.name, marks=marks(b)) for b in BOARDS.values() if b.hardware is hardware]


@pytest.mark.parametrize("board", boards(hardware=False))
def test_a_board_learns_what_this_machine_learns(built: Any, board: str) -> None:
    with Session(built("host")) as session:
        expected = [session.step(X, Y) for _ in range(10)], session.predict(X)
    with Session(built(board)) as session:
        losses = [session.step(X, Y) for _ in range(10)]
        np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
        np.testing.assert_allclose(session.predict(X), expected[1], rtol=1e-4, atol=1e-6)
        memory = session.memory()
        assert 0 < memory["stack_bytes"] < memory["stack_limit_bytes"]
        assert memory["arena_high_water_bytes"] == 3376
        assert memory["flash_bytes"] > 4000 and memory["sram_bytes_linked"] > memory["arena_bytes"]
        if board != "host":
            assert session.time_unit == "instructions"
            assert session.time("predict") == session.time("predict") > 64
        assert session.info.board == board


@pytest.mark.parametrize("entry", ["overflow_stack", "write_flash", "write_nowhere"])
@pytest.mark.parametrize("board", boards(hardware=False))
def test_a_board_reports_its_faults(built: Any, board: str, entry: str) -> None:
    with Session(built(board)) as session, pytest.raises(TransportError, match=f"tt-fault: .* in {entry}"):
        session.call(entry)


@pytest.mark.parametrize("board", boards(hardware=True))
def test_a_real_board_links_within_its_memory(built: Any, board: str) -> None:
    project = built(board)
    sizes = project.sizes()
    chip = project.board.chip
    if chip.memories:
        assert 4000 < sizes.flash_bytes < chip.first("flash").bytes
        assert 4352 < sizes.sram_bytes < chip.first("sram").bytes
        assert {"tt_ticks_start", "tt_systick_handler"} <= {f.name for f in project.program.functions}


@pytest.mark.needs("arm-none-eabi-gcc")
def test_what_does_not_fit_a_real_board_says_by_how_much(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=r"memory SRAM: found \d+ bytes too many"):
        generate_project(hand_written(330_000), "stm32f746g-disco", tmp_path).build()


@pytest.mark.needs("arm-none-eabi-gcc")
def test_no_budget_helps_where_the_arena_lies_elsewhere(tmp_path: Path) -> None:
    board = replace(get_board("mps2-an500"), stack_bytes=8 << 20)
    with pytest.raises(BoardError, match=r"bytes too many.*not the arena: lower stack_bytes"):
        generate_project(hand_written(), board, tmp_path).build()


@pytest.mark.host_compiler
@pytest.mark.emulator
def test_a_path_may_hold_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linker's options and the emulator's are divided by them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a, b"))
    with Session(hand_written(), "mps2-an500", tmp_path / "c,d e") as session:
        assert session.time("predict") > 64
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    with (
        pytest.raises(ArchiveError, match="XDG_CACHE_HOME"),
        Session(hand_written(), "mps2-an500", tmp_path / "e"),
    ):
        pass


def test_a_flashed_path_may_hold_blanks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """openocd's commands are Tcl, which divides words at blanks."""
    (tmp_path / "openocd").write_text(f'#!/bin/sh\necho "$4" > {tmp_path}/said\n')
    (tmp_path / "openocd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    flash(get_board("stm32f746g-disco"), tmp_path / "a b" / "c.elf", StartOptions())
    assert (tmp_path / "said").read_text() == f"program {{{tmp_path}/a b/c.elf}} verify reset exit\n"


@pytest.mark.parametrize("name", ["stm32f746g-disco", "raspberry-pi-4"])
def test_a_real_board_needs_to_be_told_where_it_is(name: str) -> None:
    board = get_board(name)
    with pytest.raises(BoardError, match=r"no port.*pass e\.g\. port="):
        start(board, Path("x.elf"), StartOptions())


def test_a_missing_tool_says_how_to_get_it(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match=r"arm-none-eabi-gcc.*apt-get install.*gcc-arm-none-eabi"):
        Session(fake, "mps2-an500", tmp_path).open()
    with pytest.raises(ToolMissingError, match=r"gcc: .*apt-get install"):
        Session(fake, "host", tmp_path).open()


@pytest.mark.emulator
def test_the_emulator_may_be_missing(built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = built("mps2-an500")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolMissingError, match=r"qemu-system-arm.*apt-get install.*qemu-system-arm"):
        Session(project).open()


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())
def test_the_table_is_sound(board: Board) -> None:
    assert board.target.core.is_microcontroller == bool(board.chip.memories)
    assert board.target.compiler in board.all_tools
    assert ("not run on hardware" in board.note) == board.hardware
    if not board.chip.memories:
        return
    for memory in board.chip.memories:
        assert memory.name in linker_script(board, memory) or memory.kind not in ("sram", "external")
    sram = board.chip.first("sram")
    assert board.stack_bytes + board.frame_payload_bytes < sram.bytes // 4
    regions = mpu_regions(board)
    assert 3 <= len(regions) <= 8


@pytest.mark.parametrize(
    ("origin", "size"),
    [
        (0x20000000, 320 << 10),
        (0, 4 << 20),
        (0x20010000, 256 << 10),
        (0x24000000, 512 << 10),
        (0x8000, 0x8000),
        (0x20000000, 192 << 10),
        (0x20000020, 96),
    ],
)
def test_regions_cover_exactly(origin: int, size: int) -> None:
    covered = []
    for region in cover(origin, size, "TT_ACCESS_DATA"):
        assert region.base % (1 << region.log2_bytes) == 0 and region.log2_bytes >= 8
        eighth = (1 << region.log2_bytes) // 8
        covered += [(region.base + i * eighth, eighth) for i in range(8) if not region.off >> i & 1]
    assert covered[0][0] == origin
    assert sum(bytes_ for _, bytes_ in covered) == size
    assert all(a + n == b for (a, n), (b, _) in pairwise(covered))


@pytest.mark.parametrize("span", [cover, whole])
@pytest.mark.parametrize(
    ("origin", "size", "at"),
    [
        (0x38000014, 0xF00C, "0x38000014"),
        (0x38000000, 0xF004, "0x3800f00[04]"),
        (0x40000010, 1 << 20, "0x40000010"),
    ],
)
def test_memory_off_the_units_grain_is_refused(span: Any, origin: int, size: int, at: str) -> None:
    """Armv8-M would take the low bits of such an address for permissions: read-only, or the other way round."""
    with pytest.raises(
        BoardError, match=f"address {at}.*: found no region fits; allowed multiples of 32 bytes"
    ):
        span(origin, size, "TT_ACCESS_DATA")
