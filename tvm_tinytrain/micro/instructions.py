"""Exact counts of executed instructions: a plugin in the emulator, read after each call."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from tvm_tinytrain.errors import ArchiveError, BoardError
from tvm_tinytrain.micro.elf import Program
from tvm_tinytrain.targets.runtime_files import runtime_folder
from tvm_tinytrain.targets.tools import find_tool

_FLAGS = ("-std=gnu99", "-O2", "-shared", "-fPIC")


def plugin_path() -> Path:
    """Return the compiled plugin, building it into the user's cache folder when it is not there.

    Raises
    ------
    ToolMissingError
        No C compiler for this machine.
    BoardError
        The plugin does not compile.
    ArchiveError
        The cache folder cannot be written.
    """
    source = runtime_folder() / "qemu" / "insn_count.c"
    digest = hashlib.sha256(source.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tvm_tinytrain"
    plugin = cache / f"insn_count-{digest}.so"
    if plugin.exists():
        return plugin
    compiler = find_tool("gcc", "instruction counter")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return _compiled(compiler, source, plugin)
    except OSError as error:
        hint = "name another one: XDG_CACHE_HOME"
        raise ArchiveError(
            "instruction counter", f"cache folder {cache}", error, "a folder of your own", hint
        ) from error


def _compiled(compiler: str, source: Path, plugin: Path) -> Path:
    with tempfile.TemporaryDirectory(dir=plugin.parent) as folder:
        partial = Path(folder) / plugin.name
        command = [compiler, *_FLAGS, "-o", str(partial), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            found = f"exit code {done.returncode}"
            raise BoardError("instruction counter", source.name, found, "0", done.stderr[-2000:])
        partial.rename(plugin)
    return plugin


class InstructionCounter:
    """Counts what runs between the runtime's two marker functions, in files that have no name.

    Parameters
    ----------
    program
        The firmware: addresses of the markers, and of all functions when `by_function`.
    by_function
        Also split the count by function.
    """

    def __init__(self, program: Program, by_function: bool = False) -> None:
        self._begin = program.address_of("tt_region_begin")
        self._end = program.address_of("tt_region_end")
        self._output = os.memfd_create("tinytrain-count")
        self._log = os.memfd_create("tinytrain-log")
        self._symbols = -1
        if by_function:
            self._symbols = os.memfd_create("tinytrain-symbols")
            lines = [f"{f.address:x} {f.bytes:x} {f.name}\n" for f in program.functions if f.bytes]
            os.write(self._symbols, "".join(lines).encode())
            os.lseek(self._symbols, 0, os.SEEK_SET)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """File descriptors that the emulator must inherit."""
        own = (self._output, self._log)
        return own if self._symbols < 0 else (*own, self._symbols)

    def options(self) -> list[str]:
        """Return the emulator's options."""
        symbols = f",symbols={self._symbols}" if self._symbols >= 0 else ""
        arguments = f"begin={self._begin:#x},end={self._end:#x},fd={self._output},log={self._log}{symbols}"
        path = str(plugin_path()).replace(",", ",,")  # QEMU's way to write one
        return ["-plugin", f"{path},{arguments}"]

    def read(self) -> tuple[int, dict[str, int]]:
        """Return the instructions of the last region, and those of each function (none without the split)."""
        text = os.pread(self._output, 1 << 24, 0).decode("ascii", "replace")
        total, functions = 0, {}
        for line in text.splitlines():
            key, *values = line.split()
            if key == "instructions":
                total = int(values[0])
            elif key == "function":
                functions[values[1]] = int(values[0])
        return total, functions

    def log(self) -> list[tuple[int, int]]:
        """Return for every region since the start the instructions between it and the one before, and those in it."""
        text = os.pread(self._log, 1 << 26, 0).decode("ascii", "replace")
        return [(int(before), int(inside)) for before, inside in (line.split() for line in text.splitlines())]

    def close(self) -> None:
        """Release the files; a second call does nothing."""
        for descriptor in self.descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        self._output = self._symbols = self._log = -1
