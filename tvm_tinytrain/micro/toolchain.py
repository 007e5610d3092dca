"""Compiles and links C: two jobs at a time, nothing twice, errors as one line and the compiler's words."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tvm_tinytrain.errors import ArchiveError, BoardError, TransportError
from tvm_tinytrain.targets.target import Target
from tvm_tinytrain.targets.tools import find_tool

_JOBS = 2
_FULL = "No space left on device"
_ENDED = re.compile(r"\w[\w ]* signal terminated program \w+")
_OVERFLOW = re.compile(r"region `(\w+)' overflowed by (\d+) bytes")


class MemoryOverflowError(BoardError):
    """The program does not fit a memory. memory: its name; bytes_over: how many bytes too many."""

    def __init__(
        self,
        memory: str,
        bytes_over: int,
        hint: str = "lower the budget, update fewer layers, or choose a board with more memory",
    ) -> None:
        self.memory, self.bytes_over = memory, bytes_over
        super().__init__("link", f"memory {memory}", f"{bytes_over} bytes too many", "0 bytes over", hint)


@dataclass(frozen=True)
class Compilation:
    """One C file and the flags that it is compiled with."""

    source: Path
    flags: tuple[str, ...]


def compile_all(target: Target, units: Sequence[Compilation], folder: Path) -> list[Path]:
    """Compile each unit to an object file in `folder`; one that is there from the same bytes is kept.

    Raises
    ------
    ToolMissingError
        The compiler is not installed.
    BoardError
        The compiler refuses a file.
    ArchiveError, TransportError
        The disk is full, or something ended the compiler.
    """
    compiler = find_tool(target.compiler, "compile")
    folder.mkdir(parents=True, exist_ok=True)
    version = _version(compiler)
    common = {
        flags: hashlib.sha256(version.encode() + _headers(flags, units)).digest()
        for flags in {unit.flags for unit in units}
    }
    with ThreadPoolExecutor(_JOBS) as jobs:
        return list(jobs.map(lambda unit: _compile(compiler, unit, folder, common[unit.flags]), units))


def _compile(compiler: str, unit: Compilation, folder: Path, common: bytes) -> Path:
    command = [compiler, *unit.flags, "-c", str(unit.source)]
    digest = hashlib.sha256(common + unit.source.read_bytes() + "\0".join(command).encode()).hexdigest()
    target = folder / f"{unit.source.stem}-{digest[:16]}.o"
    if target.exists():
        return target
    partial = target.with_suffix(".tmp")
    done = run_compiler("compile", [*command, "-o", str(partial)])
    if done.returncode:
        hint = "report it with the emitted file if you did not write it:\n" + done.stderr[-4000:]
        raise BoardError("compile", unit.source.name, f"exit code {done.returncode}", "0", hint)
    partial.rename(target)
    return target


def _headers(flags: tuple[str, ...], units: Sequence[Compilation]) -> bytes:
    """Names and contents of what files with these flags may include: headers beside them and where the flags point."""
    folders = {unit.source.parent for unit in units if unit.flags == flags}
    folders |= {Path(flag[2:]) for flag in flags if flag.startswith("-I")}
    first = {Path(name) for flag, name in pairwise(flags) if flag == "-include"}
    headers = sorted({path for folder in folders for path in folder.glob("*.h")} | first)
    return b"".join(path.name.encode() + path.read_bytes() for path in headers)


def link(target: Target, objects: Sequence[Path], flags: Sequence[str], program: Path) -> None:
    """Link `objects` to `program`.

    Raises
    ------
    MemoryOverflowError
        A memory of the linker script is too small.
    BoardError
        The linker fails otherwise.
    ArchiveError, TransportError
        The disk is full, or something ended the linker.
    """
    compiler = find_tool(target.compiler, "link")
    command = [compiler, *target.cflags, *map(str, objects), *flags, "-o", str(program)]
    done = run_compiler("link", command)
    if done.returncode == 0:
        return
    overflow = _OVERFLOW.findall(done.stderr)
    if overflow:
        memory, bytes_over = max(overflow, key=lambda item: int(item[1]))
        raise MemoryOverflowError(memory, int(bytes_over))
    hint = "see what the linker says:\n" + done.stderr[-4000:]
    raise BoardError("link", program.name, f"exit code {done.returncode}", "0", hint)


def run_compiler(stage: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler and return how it ended, what it says in English, which is read here.

    Raises ArchiveError where the disk is full, TransportError where something ended it: neither says anything about its sources.
    """
    english = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=english)
    if done.returncode and _FULL in done.stderr:
        line = next(line.strip() for line in done.stderr.splitlines() if _FULL in line)
        hint = "make room there and in the folder of temporary files (TMPDIR)"
        raise ArchiveError(
            stage, str(Path(command[-1]).parent), line, "room for what the compiler writes", hint
        )
    ended = _ENDED.search(done.stderr)
    if done.returncode < 0 or (done.returncode and ended):
        found = ended[0] if ended else f"signal {-done.returncode}"
        hint = "see what ended it, e.g. too little memory"
        raise TransportError(stage, Path(command[0]).name, found, "one that comes to its end", hint)
    return done


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
