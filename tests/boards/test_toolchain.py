"""What is compiled again when something changes, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tvm_tinytrain.errors import ArchiveError, BoardError, TinyTrainError, TransportError
from tvm_tinytrain.micro.toolchain import Compilation, MemoryOverflowError, compile_all, link
from tvm_tinytrain.targets.target import parse_target

pytestmark = pytest.mark.host_compiler


def test_a_header_counts_for_the_files_that_may_include_it(tmp_path: Path) -> None:
    for name in ("own", "include", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "a.c").write_text(
        '#include "beside.h"\n#include "pointed.h"\nint a = FIRST + BESIDE + POINTED;\n'
    )
    (tmp_path / "other" / "b.c").write_text("int b;\n")
    headers = {
        "own/beside.h": "BESIDE",
        "include/pointed.h": "POINTED",
        "first.h": "FIRST",
        "other/b.h": "OTHER",
    }
    for path, macro in headers.items():
        (tmp_path / path).write_text(f"#define {macro} 1\n")
    flags = (f"-I{tmp_path / 'include'}", "-include", str(tmp_path / "first.h"))
    units = [Compilation(tmp_path / "own" / "a.c", flags), Compilation(tmp_path / "other" / "b.c", ())]

    def compiled() -> tuple[Path, ...]:
        return tuple(compile_all(parse_target("c -mcpu=x86-64-v3"), units, tmp_path / "objects"))

    before = compiled()
    times = [path.stat().st_mtime_ns for path in before]
    assert compiled() == before and [path.stat().st_mtime_ns for path in before] == times
    for path, macro in headers.items():
        (tmp_path / path).write_text(f"#define {macro} 2\n")
        after = compiled()
        changed = [old != new for old, new in zip(before, after, strict=True)]
        assert changed == ([False, True] if macro == "OTHER" else [True, False]), macro
        before = after


@pytest.mark.parametrize(
    ("says", "error", "message"),
    [
        ("cc1: fatal error: error writing to /tmp/a.s: No space left on device", ArchiveError, "TMPDIR"),
        ("gcc: fatal error: Killed signal terminated program cc1", TransportError, "found Killed signal"),
        ("a.c:1:1: error: expected an expression", BoardError, "exit code 1"),
    ],
)
def test_what_no_source_is_to_blame_for(
    says: str, error: type[TinyTrainError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gcc").write_text(f'#!/bin/sh\necho "{says}" >&2\nexit 1\n')
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "a.c").write_text("int a;\n")
    with pytest.raises(error, match=message):
        compile_all(parse_target("host"), [Compilation(tmp_path / "a.c", ())], tmp_path / "objects")
    assert not list((tmp_path / "objects").iterdir())


def test_the_linker_is_asked_for_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads of a memory that is too small puts the arena into another one."""
    over = "region \\`SRAM' overflowed by 16 bytes"
    (tmp_path / "gcc").write_text(f'#!/bin/sh\n[ "$LC_ALL" = C ] && echo "{over}" >&2\nexit 1\n')
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(MemoryOverflowError, match="SRAM: found 16 bytes"):
        link(parse_target("host"), [], [], tmp_path / "a.elf")
