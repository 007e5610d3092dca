"""Emitted libraries under the address and undefined-behaviour sanitizers, in a process of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emit.libraries import library
from tests.emit.test_compile import OPTIONS
from tvm_tinytrain.build import TrainModule

MAIN = Path(__file__).with_name("run_library.c")
FLAGS = (
    "-std=c99",
    "-O1",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fsanitize=float-divide-by-zero",
)


def run(module: TrainModule, folder: Path, *arguments: str) -> str:
    program = folder / "run_library"
    if not program.exists():
        module.write(folder)
        name = f"tt_{module.name}"
        defines = [f"-DLIBRARY={name}_library", f'-DHEADER="{name}.h"', f"-I{folder}"]
        sources = [str(folder / n) for n in sorted(module.files) if n.endswith(".c")]
        command = ["gcc", *FLAGS, *defines, str(MAIN), *sources, "-o", str(program), "-lm"]
        subprocess.run(command, check=True)
    done = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0 and not done.stderr, f"exit code {done.returncode}\n{done.stderr[:3000]}"
    return done.stdout


@pytest.mark.host_compiler
@pytest.mark.parametrize("name", OPTIONS)
def test_no_finding_and_no_byte_read_before_it_is_written(name: str, tmp_path: Path) -> None:
    module = library(**OPTIONS[name])
    zeros, ones = (run(module, tmp_path, fill) for fill in ("0", "255"))
    assert zeros == ones, "what was in the arena before init shows in the results"
    values = np.array([float.fromhex(line.split()[1]) for line in zeros.splitlines()])
    assert np.isfinite(values).all()
    assert len(values) > 3 + 3


@pytest.mark.host_compiler
def test_init_refuses_wrong_arenas(tmp_path: Path) -> None:
    module = library()
    module.write(tmp_path)
    (tmp_path / "arenas.c").write_text(
        """
#include "tt_small.h"
#include <stdio.h>
static double memory[TT_SMALL_ARENA_BYTES / 8 + 2];
int main(void) {
  unsigned char *at = (unsigned char *)memory;
  printf("%d %d %d %d\\n", tt_small_init(NULL, TT_SMALL_ARENA_BYTES), tt_small_init(at, TT_SMALL_ARENA_BYTES - 1),
         tt_small_init(at + 4, TT_SMALL_ARENA_BYTES), tt_small_init(at + 8, TT_SMALL_ARENA_BYTES));
  return 0;
}
"""
    )
    sources = sorted(n for n in module.files if n.endswith(".c"))
    subprocess.run(["gcc", "-std=c99", "-o", "arenas", "arenas.c", *sources, "-lm"], cwd=tmp_path, check=True)
    out = subprocess.run([str(tmp_path / "arenas")], check=True, capture_output=True, text=True).stdout
    assert out.split() == ["-1", "-2", "-3", "0"]


def test_c_and_python_agree_on_the_tables() -> None:
    module: Any = library()
    rows = module.files["tt_small.c"].decode()
    for t in module.metadata["tensors"]:
        assert f'{{"{t["name"]}", ' in rows
        if t["offset"] is not None:
            assert f", {t['bytes']}, {t['offset']}, NULL}}" in rows
