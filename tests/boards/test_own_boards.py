"""Boards that users describe: what no firmware can have is refused where it is written; the rest is linked and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tvm_tinytrain.errors import ArchiveError, BoardError
from tvm_tinytrain.micro import GeneratedProject, Session, generate_project
from tvm_tinytrain.micro.exports import export_project
from tvm_tinytrain.micro.runners import _RUNNERS, StartOptions, start
from tvm_tinytrain.targets.boards import BOARDS, RUNNERS, Board, get_board
from tvm_tinytrain.targets.chips import CHIPS, Memory

BOARD = get_board("mps2-an500")
FLASH, SRAM, EXTERNAL = BOARD.chip.memories


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 'my "board"'}, r"name: found 'my \"board\"'; allowed letters"),
        ({"name": ""}, "name: found ''"),
        ({"chip_name": "nope"}, "chip_name: found 'nope'; allowed mps2-an385, .*a Chip to CHIPS"),
        ({"runner": "nope"}, "runner: found 'nope'; allowed process, "),
        ({"stack_bytes": 0}, "stack_bytes: found 0; allowed 8 or more, a multiple of 8"),
        ({"stack_bytes": 1001}, "stack_bytes: found 1001"),
        ({"stack_bytes": 4096.0}, r"stack_bytes: found 4096\.0"),
        ({"frame_payload_bytes": 0}, "frame_payload_bytes: found 0; allowed 256 to 65536"),
        ({"frame_payload_bytes": 70_000}, "frame_payload_bytes: found 70000"),
        ({"arena_guard_bytes": -4}, "arena_guard_bytes: found -4"),
        ({"arena_guard_bytes": 5}, "arena_guard_bytes: found 5; allowed 0 or more, a multiple of 4"),
        ({"baud": True}, "baud: found True"),
    ],
)
def test_a_board_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BoardError, match=message):
        replace(BOARD, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"core": "cortex-m99"}, "chip mps2-an500, core: found 'cortex-m99'; allowed host, cortex-m0plus"),
        ({"memories": ()}, "memories: found none; allowed flash and sram"),
        ({"memories": (SRAM,)}, "memories: found sram; allowed flash and sram"),
        ({"memories": (FLASH, EXTERNAL)}, "memories: found flash, external"),
        ({"memories": (FLASH, replace(SRAM, origin=0))}, "SSRAM1 and SSRAM23 share addresses"),
        ({"memories": (FLASH, SRAM, replace(EXTERNAL, name="SSRAM23"))}, "allowed different names"),
        ({"clock_hz": 25e6}, r"clock_hz: found 25000000\.0; allowed 0 or more"),
    ],
)
def test_a_chip_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BoardError, match=message):
        replace(BOARD.chip, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "SRAM-1"}, "name: found 'SRAM-1'; allowed letters"),
        ({"kind": "SRAM"}, "memory SSRAM23, kind: found 'SRAM'; allowed boot, flash, sram"),
        ({"bytes": 0}, "memory SSRAM23, bytes: found 0; allowed 1 to"),
        ({"origin": 1 << 32}, "memory SSRAM23, origin: found 4294967296"),
        ({"origin": (1 << 32) - 4096}, "memory SSRAM23, bytes: found 4194304; allowed 1 to 4096"),
    ],
)
def test_a_memory_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BoardError, match=message):
        replace(SRAM, **change)


def test_a_byte_stream_that_there_is_not(fake: Any, tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=r"mps2-an500, port: found 'nope'; allowed process, .*uart_nrf52"):
        generate_project(fake, replace(BOARD, port="nope"), tmp_path)


def test_every_runner_is_known() -> None:
    assert set(RUNNERS) == set(_RUNNERS)


@pytest.mark.emulator
def test_a_project_is_found_again_with_its_boards_options(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(BOARD.chip, name="small", memories=(FLASH, Memory("RAM", "sram", SRAM.origin, 64 << 10)))
    monkeypatch.setitem(CHIPS, "small", small)
    board = replace(BOARD, name="mine", chip_name="small", stack_bytes=4096, frame_payload_bytes=512)
    generate_project(fake, board, tmp_path)
    found = GeneratedProject.from_directory(tmp_path)
    assert found.board == board
    with Session(found.build()) as session:
        session.call("step")
        assert session.memory()["stack_limit_bytes"] == 4096 and session.info.capacity == 512
    monkeypatch.delitem(CHIPS, "small")
    with pytest.raises(BoardError, match="chip_name: found 'small'"):
        GeneratedProject.from_directory(tmp_path)
    (tmp_path / "project.json").write_text('{"library": "fake", "options": {"name": "mine"}}')
    with pytest.raises(ArchiveError, match="a project folder"):
        GeneratedProject.from_directory(tmp_path)


def described(monkeypatch: pytest.MonkeyPatch, core: str, *memories: Memory) -> Board:
    """The board with another core and other memories, at addresses where the emulator has memory."""
    chip = replace(BOARD.chip, name="mine", core=core, memories=memories)
    monkeypatch.setitem(CHIPS, "mine", chip)
    machine = {"cortex-m0plus": "mps2-an385", "cortex-m7": "mps2-an500"}[core]
    return replace(BOARD, name="mine", chip_name="mine", machine=machine, stack_bytes=2048)


@pytest.mark.emulator
def test_an_arena_goes_to_the_second_sram_before_external_memory(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Memory("S1", "sram", SRAM.origin, 6 << 10)
    second = Memory("S2", "sram", SRAM.origin + (16 << 10), 128 << 10)
    board = described(monkeypatch, "cortex-m7", FLASH, EXTERNAL, first, second)
    with Session(fake, board, tmp_path / "board") as session:
        session.call("step")
        assert session.project.arena_memory == "S2" and session.memory()["external_bytes_linked"] == 0
    export_project(fake, "bare-metal", tmp_path / "plain", board)
    assert "> S2" in (tmp_path / "plain" / "board.ld").read_text()
    assert [m.name for m in board.chip.arena_memories()] == ["S1", "S2", "PSRAM"]


@pytest.mark.needs("arm-none-eabi-gcc")
def test_the_stack_is_aligned_wherever_memory_begins(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Cortex-M0+ has no protection unit, so that nothing else asks where its memory begins."""
    board = described(
        monkeypatch, "cortex-m0plus", FLASH, Memory("S", "sram", SRAM.origin + 5, (60 << 10) + 3)
    )
    sections = generate_project(fake, board, tmp_path).build().program.sections
    stack = next(section for section in sections if section.name == ".stack")
    assert stack.address == SRAM.origin + 8 and stack.bytes == board.stack_bytes


@pytest.mark.parametrize(
    "board", [board for board in BOARDS.values() if not board.hardware], ids=lambda b: b.name
)
def test_a_port_of_a_board_without_one_is_refused(fake: Any, board: Any) -> None:
    message = f"{board.name}, port: found '/dev/ttyNOPE'; allowed no port: {board.note}; .*name the board"
    with pytest.raises(BoardError, match=message):
        Session(fake, board, port="/dev/ttyNOPE")
    with pytest.raises(BoardError, match=message):
        start(board, Path("x.elf"), StartOptions(port="/dev/ttyNOPE"))
