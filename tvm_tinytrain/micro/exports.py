"""An archive as something that other people's tools build: bare-metal sources, a Zephyr module, an Arduino library, a CMake project.

Each has a program that trains without a host-driven session: `targets/runtime/loop/tt_loop.h`, commands of one letter over the
board's byte stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from tvm_tinytrain.emit.model_library import pack
from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.micro import export_templates as text
from tvm_tinytrain.micro.folder import with_names, write_folder
from tvm_tinytrain.micro.project import Library, arena_bytes_of
from tvm_tinytrain.targets.boards import DEFAULT_BOARD, Board, get_board
from tvm_tinytrain.targets.chips import KIB, Memory
from tvm_tinytrain.targets.memory_map import linker_script
from tvm_tinytrain.targets.runtime_files import (
    linked_arena_bytes,
    runtime_config,
    runtime_folder,
    runtime_headers,
    runtime_sources,
)

_SERVER = ("src/server.c", "src/frame.c", "src/main.c")
_LOOP = ("loop/tt_loop.c", "loop/tt_loop.h")
_NOTE = ".tinytrain.json"
_PROGRAM_BYTES = 4 * KIB
"""More than start-up code, byte stream and C library keep in SRAM (2.8 KB on an emulated board, 1.6 KB on a flashed one)."""
Files = dict[str, bytes]


def export_project(
    library: Library, kind: str, folder: str | Path, board: str | Board | None = None
) -> list[Path]:
    """Write an export into `folder` and return the paths of its files, of which `.tinytrain.json` there keeps the names.

    Files of an earlier export in the same folder are replaced; others stay, and none of them is overwritten.

    Parameters
    ----------
    library
        A `TrainModule` or a loaded archive.
    kind
        ``"bare-metal"``: sources, start-up, linker script and a Makefile for a Cortex-M `board` (None: an emulated Cortex-M7).
        ``"zephyr"``: a module with a sample. ``"arduino"``: a library with a sketch. ``"cmake"``: a program for this
        machine that finds this package.

    Raises
    ------
    BoardError
        No such kind; a board without a microcontroller, or for a kind that is for any; kernels that are compiled already for
        another machine.
    ArchiveError
        The folder holds files of the same names that no earlier export wrote, or cannot be written.
    """
    if kind not in _KINDS:
        raise BoardError("project", "kind", repr(kind), ", ".join(_KINDS), "choose one of them")
    if board is not None and kind != "bare-metal":
        allowed, hint = "a board for kind bare-metal", f"leave it out: {kind} has boards of its own"
        raise BoardError("project", f"board of kind {kind}", get_board(board).name, allowed, hint)
    kernels = library.metadata.get("kernels")
    if kind != "cmake" and isinstance(kernels, Mapping) and kernels.get("form") == "object":
        hint = 'build the module with "c -mcpu=..."'
        found = f"an object for {kernels['triple']}"
        raise BoardError("project", f"{library.name}, kind {kind}", found, "kernels in C", hint)
    files = _KINDS[kind](library, get_board(DEFAULT_BOARD if board is None else board))
    root = Path(folder)
    write_folder(
        root, {**files, _NOTE: with_names({"library": library.name, "kind": kind}, files, _NOTE)}, _NOTE
    )
    return [root / name for name in files]


def _fill(template: str, library: Library, **more: str) -> bytes:
    return text.fill(template, library.name, **more).encode()


def _sources(library: Library, prefix: str) -> Files:
    """The library's C files and the loop's, flat in one folder."""
    files = {
        f"{prefix}{name}": content for name, content in library.files.items() if name.endswith((".c", ".h"))
    }
    return files | {f"{prefix}{Path(n).name}": (runtime_folder() / n).read_bytes() for n in _LOOP}


def _c_files(files: Files) -> list[str]:
    return sorted(name for name in files if name.endswith(".c"))


def _bare_metal(library: Library, board: Board) -> Files:
    core = board.target.core
    if not core.is_microcontroller:
        hint = "choose one of them, or kind cmake"
        raise BoardError("project", f"bare-metal on {board.name}", core.name, "a board with a Cortex-M", hint)
    files = _sources(library, "library/")
    runtime = [name for name in runtime_sources(board) if name not in _SERVER]
    for name in (*runtime, *runtime_headers()):
        files[f"runtime/{name}"] = (runtime_folder() / name).read_bytes()
    size = arena_bytes_of(library)
    memory = _memory_for(board, library)
    files["main.c"] = _fill(text.BARE_METAL_MAIN, library)
    files["tt_config.h"] = runtime_config(board, size).encode()
    files["board.ld"] = linker_script(board, memory).encode()
    sources = [*_c_files(files)]
    files["Makefile"] = _fill(
        text.BARE_METAL_MAKEFILE, library, FLAGS=" ".join(board.target.cflags), SOURCES=" ".join(sources),
        TRIPLE=core.triple, RUN=_run_line(board, library.name),
    )  # fmt: skip
    files["README.md"] = _fill(text.BARE_METAL_README, library, BOARD=board.name, NOTE=board.note)
    return files


def _memory_for(board: Board, library: Library) -> Memory:
    """The first memory that takes the arena; in SRAM lie also the stack, the pool of the library's cache, and the program's own."""
    sram, *others = board.chip.arena_memories()
    arena = linked_arena_bytes(board, arena_bytes_of(library))
    pools = library.metadata.get("training", {}).get("pools", {})
    beside = board.stack_bytes + pools.get("cache", {}).get("bytes", 0)
    roomy = [memory for memory in others if memory.bytes >= arena]
    # Without a choice the linker decides, which knows to the byte.
    if arena + beside + (_PROGRAM_BYTES if roomy else 0) <= sram.bytes:
        return sram
    if not roomy:
        found = f"arena of {arena} bytes, {beside} of stack and cache"
        hint = "lower the budget, or choose a board with more memory"
        raise BoardError("project", board.name, found, f"{sram.bytes} bytes of SRAM", hint)
    return roomy[0]


def _run_line(board: Board, name: str) -> str:
    if board.runner == "qemu-system":
        options = "-display none -monitor none -serial null -semihosting-config"
        arguments = "enable=on,target=native,arg=firmware,arg=$(IN),arg=$(OUT)"
        return f"qemu-system-arm -M {board.machine} {options} {arguments} -kernel {name}.elf"
    return f'openocd -f {board.machine} -c "program {name}.elf verify reset exit"'


def _zephyr(library: Library, board: Board) -> Files:
    files = _sources(library, "src/")
    own = {f"src/tt_{library.name}{end}" for end in (".c", ".h", "_internal.h", "_kernels.c", "_params.c")}
    listed = "\n".join(f"    ../{name}" for name in _c_files(files) if name in own)
    loop = {f"src/{Path(name).name}" for name in _LOOP}
    shared = "".join(
        _zephyr_shared(library, f"tinytrain-{part}", {n: c for n, c in files.items() if n in names})
        for part, names in (("loop", {"src/tinytrain.h", *loop}), ("adapt", files.keys() - own - loop))
    )  # no library's name has a hyphen
    stack = str(4096 + 4096)
    files["zephyr/module.yml"] = _fill(text.ZEPHYR_MODULE, library)
    files["zephyr/CMakeLists.txt"] = _fill(text.ZEPHYR_CMAKE, library, SOURCES=listed, SHARED=shared)
    files["zephyr/Kconfig"] = _fill(text.ZEPHYR_KCONFIG, library)
    files["samples/loop/CMakeLists.txt"] = _fill(text.ZEPHYR_SAMPLE_CMAKE, library)
    files["samples/loop/prj.conf"] = _fill(text.ZEPHYR_SAMPLE_CONF, library, STACK=stack)
    files["samples/loop/sample.yaml"] = _fill(
        text.ZEPHYR_SAMPLE_YAML, library, RAM=str(arena_bytes_of(library) // 1024 + 32)
    )
    files["samples/loop/src/main.c"] = _fill(text.ZEPHYR_SAMPLE_MAIN, library)
    files["README.md"] = _fill(text.ZEPHYR_README, library)
    return files


def _zephyr_shared(library: Library, target: str, files: Files) -> str:
    """The CMake text of sources that other modules of an application bring too; "" without sources."""
    sources = _c_files(files)
    if not sources:
        return ""
    digest = hashlib.sha256(b"\0".join(files[name] for name in sorted(files))).hexdigest()[:16]
    listed = "\n".join(f"      ../{name}" for name in sources)
    words = {"TARGET": target, "SOURCES": listed, "DIGEST": digest}
    return _fill(text.ZEPHYR_SHARED, library, **words).decode()


def _arduino(library: Library, board: Board) -> Files:
    files = _sources(library, "src/")
    version = str(library.metadata.get("versions", {}).get("tvm_tinytrain", "0.0.0"))
    files["library.properties"] = _fill(text.ARDUINO_PROPERTIES, library, VERSION=version)
    files["keywords.txt"] = _fill(text.ARDUINO_KEYWORDS, library)
    files["examples/Loop/Loop.ino"] = _fill(text.ARDUINO_SKETCH, library)
    files["README.md"] = _fill(text.ARDUINO_README, library)
    return files


def _cmake(library: Library, board: Board) -> Files:
    loop = {Path(n).name: (runtime_folder() / n).read_bytes() for n in _LOOP}
    return {
        **loop,
        f"{library.name}.tar": pack(dict(library.files)),
        "CMakeLists.txt": _fill(text.CMAKE_LISTS, library),
        "main.c": _fill(text.CMAKE_MAIN, library),
        "README.md": _fill(text.CMAKE_README, library),
    }


_KINDS: dict[str, Callable[[Library, Board], Files]] = {
    "bare-metal": _bare_metal,
    "zephyr": _zephyr,
    "arduino": _arduino,
    "cmake": _cmake,
}
