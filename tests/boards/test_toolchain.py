"""What is compiled again when something changes, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvm_tinytrain.micro.toolchain import Compilation, compile_all
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
