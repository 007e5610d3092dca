"""A folder with everything that one library on one board is built from, and what is done with it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tvm_tinytrain.errors import ArchiveError, BoardError, PlanError, ShapeError
from tvm_tinytrain.micro.elf import Program, read_program
from tvm_tinytrain.micro.export_templates import BOARD_README, fill
from tvm_tinytrain.micro.folder import with_names, write_folder
from tvm_tinytrain.micro.runners import Connection, StartOptions, flash, start
from tvm_tinytrain.micro.standalone import DATA_FILE, Standalone, standalone_source
from tvm_tinytrain.micro.toolchain import Compilation, MemoryOverflowError, compile_all, link
from tvm_tinytrain.targets.boards import BOARDS, Board, get_board
from tvm_tinytrain.targets.chips import Memory
from tvm_tinytrain.targets.cores import CORES, cores_run_by
from tvm_tinytrain.targets.memory_map import linker_script
from tvm_tinytrain.targets.runtime_files import (
    STANDALONE_SOURCE,
    runtime_config,
    runtime_folder,
    runtime_headers,
    runtime_sources,
)

_STRICT = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
_STANDALONE = "tt_standalone.c"
_NOTE = "project.json"
_SECTIONS = ("-ffunction-sections", "-fdata-sections")


class Library(Protocol):
    """What a project is made from; `tvm_tinytrain.build.TrainModule` is one."""

    @property
    def name(self) -> str:
        """The library's name: it declares ``tt_<name>_library`` in ``tt_<name>.h``."""
        ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """The emitted files: path -> content."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """``metadata["memory"]["arena_bytes"]`` is used here."""
        ...


@dataclass(frozen=True)
class LinkedSizes:
    """Bytes that a linked program takes, by kind of memory; the arena is in one of the last two."""

    flash_bytes: int
    sram_bytes: int
    external_bytes: int


def get_supported_boards() -> tuple[str, ...]:
    """Return the names of all boards."""
    return tuple(BOARDS)


def generate_project(
    library: Library, board: str | Board, folder: str | Path, *, standalone: Standalone | None = None
) -> GeneratedProject:
    """Write the library, the C runtime and the board's configuration into `folder`.

    Files of an earlier project in the same folder are replaced; others stay, and none of them is overwritten. With `standalone`
    the firmware adapts a task-adaptive library by itself when it starts, and serves afterwards.

    Raises
    ------
    BoardError
        Unknown board.
    ArchiveError
        The library lacks its header, or its arena's size, or cannot adapt by itself; the folder holds files of the same names that
        no earlier project wrote, or cannot be written.
    PlanError, ShapeError
        `standalone` is not for this library.
    """
    check_library(library, "project")
    chosen, root = get_board(board), Path(folder)
    arena_bytes = arena_bytes_of(library)
    if f"tt_{library.name}.h" not in library.files:
        found = ", ".join(sorted(library.files)) or "no files"
        raise ArchiveError("project", library.name, found, f"tt_{library.name}.h", "build the module again")
    check_object(library, chosen)
    if standalone is not None:
        _check_standalone(library, standalone)
    files = {f"library/{name}": content for name, content in library.files.items()}
    for name in (*runtime_sources(chosen), *runtime_headers()):
        files[f"runtime/{name}"] = (runtime_folder() / name).read_bytes()
    files["tt_active.c"] = _active(library.name).encode()
    files["tt_config.h"] = runtime_config(chosen, arena_bytes, standalone=standalone is not None).encode()
    if standalone is not None:
        files[DATA_FILE] = standalone_source(library.name, standalone).encode()
        files[_STANDALONE] = (runtime_folder() / STANDALONE_SOURCE).read_bytes()
    words = {"BOARD": chosen.name, "NOTE": chosen.note, "TOOLS": ", ".join(chosen.all_tools)}
    files["README.md"] = fill(BOARD_README, library.name, **words).encode()
    described = {"board": chosen.name, "library": library.name, "arena_bytes": arena_bytes}
    files[_NOTE] = with_names({**described, "options": asdict(chosen)}, files, _NOTE)
    write_folder(root, files, _NOTE)
    return GeneratedProject(root, chosen, library.name)


def _check_standalone(library: Library, task: Standalone) -> None:
    """The library must adapt, and the task be of its input and its classes."""
    if not isinstance(task, Standalone):
        hint = "it holds samples, labels and iterations"
        raise PlanError("project", "standalone", type(task).__name__, "Standalone(...)", hint)
    if "tt_session.h" not in library.files:
        hint = "build it with update=TaskAdaptive(...)"
        raise ArchiveError("project", library.name, "a fixed plan", "a task-adaptive library", hint)
    tensors = library.metadata.get("tensors", ())
    image, label, output, seed = (
        next((t for t in tensors if t[key] == value), {"dtype": "nothing", "shape": []})
        for key, value in (("role", "input"), ("role", "label"), ("role", "output"), ("name", "seed"))
    )
    prototypes, found = seed["dtype"] != "nothing", f"{image['dtype']}{image['shape']}"
    if task.augment is not None and (image["dtype"], len(image["shape"])) != ("float32", 4):
        hint = "leave out augment, or build it for images"
        allowed = "float32[1, channels, height, width]"
        raise ArchiveError("project", f"{library.name}, input to augment", found, allowed, hint)
    if prototypes and "accumulate" not in library.metadata.get("entries", ()):
        hint = "build it with accumulate=True"
        raise ArchiveError(
            "project",
            f"{library.name}, loss of prototypes",
            "a step for each sample",
            "accumulate and apply",
            hint,
        )
    if not prototypes and (label["dtype"], math.prod(label["shape"])) != ("int32", 1):
        found, hint = f"{label['dtype']}{label['shape']}", "build it with CrossEntropy() or Prototypical()"
        raise ArchiveError("project", f"{library.name}, label", found, "one int32", hint)
    if image["dtype"] not in ("float32", "uint8", "int8"):
        hint = "samples are bytes: build it for float32"
        raise ArchiveError("project", f"{library.name}, input", found, "float32, uint8, int8", hint)
    if task.samples.shape[1:] not in (tuple(image["shape"]), tuple(image["shape"][1:])):
        hint = "resize the samples to the network's input"
        raise ShapeError(
            "project", "standalone samples", task.samples.shape, f"[n, {str(image['shape'][1:])[1:-1]}]", hint
        )
    width = math.prod(seed["shape"]) if prototypes else 0
    if task.embedding != width:
        hint = "the output's values where the loss is Prototypical(), else 0"
        raise PlanError("project", "standalone embedding", task.embedding, width, hint)
    outputs = math.prod(output["shape"])
    if not prototypes and task.classes > outputs:
        hint = "build it with a head of as many outputs"
        raise PlanError("project", "standalone classes", task.classes, f"{outputs} at most", hint)


def check_library(library: object, stage: str) -> None:
    """ArchiveError for what is no library at all, an archive's path for one."""
    if not isinstance(getattr(library, "metadata", None), Mapping):
        hint = "an archive's: tt.load(path)"
        allowed = "what tt.build or tt.load returned"
        raise ArchiveError(stage, "module", type(library).__name__, allowed, hint)


def arena_bytes_of(library: Library) -> int:
    """Return the size of a library's arena; ArchiveError where its metadata does not say it."""
    try:
        found = library.metadata["memory"]["arena_bytes"]
    except (KeyError, TypeError) as error:
        hint = "build the module again"
        raise ArchiveError("project", library.name, f"no {error}", "memory.arena_bytes", hint) from error
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        hint = "build the module again"
        raise ArchiveError("project", f"{library.name}, memory.arena_bytes", repr(found), "bytes", hint)
    return found


def check_object(library: Library, board: Board) -> None:
    """Kernels that are compiled already must be for the board's system, of instructions that its core has."""
    kernels = library.metadata.get("kernels")
    if not isinstance(kernels, Mapping) or kernels.get("form") != "object":
        return
    core, made_for = board.target.core, CORES.get(str(kernels.get("mcpu")))
    # Which features this machine has beside those that `host` assumes is known to who builds for them.
    runs = made_for is not None and (core.runs_code_for(made_for) or board.chip.core == "host")
    if kernels.get("triple") != core.triple or not runs:
        found = f"an object for {kernels.get('triple')} ({kernels.get('mcpu')})"
        hint = 'build the module with "c -mcpu=..." or for the board\'s own target'
        allowed = f"{core.triple} ({', '.join(cores_run_by(core))})"
        raise BoardError("project", f"{library.name} on {board.name}", found, allowed, hint)


def _active(name: str) -> str:
    return (
        f'#include "tt_{name}.h"\n\n'
        "extern const tt_library *const tt_active_library;\n"
        f"const tt_library *const tt_active_library = &tt_{name}_library;\n"
    )


def _beside_the_arena(board: Board, memory: str) -> str:
    """What to do where a memory is too small without the arena, so that no budget helps."""
    if board.chip.first("sram").name == memory:
        held = "stack, frames, the cache's pool and the program's own data lie there, not the arena"
        return f"{held}: lower stack_bytes, frame_payload_bytes or cache_bytes, or choose a board with more"
    return "code and constants lie there: take a smaller network, or a board with more"


class GeneratedProject:
    """A project folder; make it with `generate_project`."""

    def __init__(self, folder: Path, board: Board, library: str) -> None:
        self.folder = folder
        self.board = board
        self.library = library
        self._program: Program | None = None
        self._arena_memory: Memory | None = None

    @classmethod
    def from_directory(cls, folder: str | Path) -> GeneratedProject:
        """Return the project that `generate_project` wrote into `folder`, built or not.

        Raises
        ------
        ArchiveError
            There is none.
        BoardError
            Its chip is not known here.
        """
        root = Path(folder)
        try:
            described = json.loads((root / _NOTE).read_text(encoding="utf-8"))
            options, library = described["options"], str(described["library"])
            board = Board(**{**options, "tools": tuple(options["tools"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "make it with generate_project"
            raise ArchiveError("project", str(folder), str(error), "a project folder", hint) from error
        project = cls(root, board, library)
        if project.program_path.exists():
            project._program = read_program(project.program_path)
        return project

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The library's ``metadata.json``; empty where it has none."""
        path = self.folder / "library" / "metadata.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            hint = "make the project again"
            raise ArchiveError("project", str(path), error, "the library's metadata", hint) from error
        return dict(found)

    @property
    def program_path(self) -> Path:
        """The linked program."""
        return self.folder / "build" / f"{self.library}.elf"

    @property
    def program(self) -> Program:
        """The linked program's sections and functions; BoardError before `build`."""
        if self._program is None:
            raise BoardError("project", self.library, "not built", "a built project", "call build() first")
        return self._program

    def build(self) -> GeneratedProject:
        """Compile and link; objects of an earlier build are used again when nothing changed.

        Raises
        ------
        ToolMissingError
            The compiler is not installed.
        BoardError
            The sources do not compile, or the program does not fit the board's memories.
        """
        target = self.board.target
        objects = compile_all(target, self._units(), self.folder / "build" / "objects")
        objects += sorted((self.folder / "library").rglob("*.o"))
        self.program_path.unlink(missing_ok=True)
        if target.core.is_microcontroller:
            self._arena_memory = self._link_firmware(objects)
        elif self.board.runner == "rpc":
            link(target, objects, ["-shared", "-lm"], self.program_path)
        else:
            static = [] if self.board.runner == "process" else ["-static"]  # no libraries of the other system
            link(target, objects, ["-lm", "-pthread", *static], self.program_path)
        self._program = read_program(self.program_path)
        return self

    def _units(self) -> list[Compilation]:
        shared = ("-fPIC",) if self.board.runner == "rpc" else ()
        flags = (*self.board.target.cflags, *_SECTIONS, *_STRICT, *shared)
        runtime = self.folder / "runtime"
        own = (*flags, f"-I{runtime / 'include'}", "-include", str(self.folder / "tt_config.h"))
        units = [Compilation(runtime / name, own) for name in runtime_sources(self.board)]
        sources = sorted((self.folder / "library").rglob("*.c"))
        emitted = (*flags, f"-I{self.folder / 'library'}")
        units += [Compilation(path, emitted) for path in [*sources, self.folder / "tt_active.c"]]
        both = (*own, f"-I{self.folder / 'library'}")
        alone = [self.folder / name for name in (DATA_FILE, _STANDALONE)]
        return units + [Compilation(path, both) for path in alone if path.exists()]

    def _link_firmware(self, objects: list[Path]) -> Memory:
        """Link with the arena in the first memory that takes it; return that memory."""
        candidates = self.board.chip.arena_memories()
        script = self.folder / "board.ld"
        for memory in candidates:
            script.write_text(linker_script(self.board, memory), encoding="ascii")
            flags = [
                "-nostartfiles",
                "-nostdlib",
                f"-T{script}",
                "-Wl,--gc-sections",
                "-Wl,--no-warn-rwx-segments",
            ]
            flags += ["-Xlinker", f"-Map={self.program_path.with_suffix('.map')}"]  # a path may hold commas
            flags += ["-Wl,--start-group", "-lm", "-lc", "-lgcc", "-Wl,--end-group"]
            try:
                link(self.board.target, objects, flags, self.program_path)
                return memory
            except MemoryOverflowError as error:
                if error.memory != memory.name:
                    hint = _beside_the_arena(self.board, error.memory)
                    raise MemoryOverflowError(error.memory, error.bytes_over, hint) from error
                if memory is candidates[-1]:
                    raise
        raise AssertionError("unreachable: the last candidate returns or raises")

    @property
    def arena_memory(self) -> str:
        """The name of the memory that the arena is linked to; "" on a board with an operating system."""
        return self._arena_memory.name if self._arena_memory is not None else ""

    @property
    def arena_is_external(self) -> bool:
        """True when the arena does not fit SRAM and lies in slower memory."""
        return self._arena_memory is not None and self._arena_memory.kind == "external"

    def sizes(self) -> LinkedSizes:
        """Return the bytes that the linked program takes."""
        sections = self.program.sections
        memories = self.board.chip.memories

        def kind_at(address: int) -> str:
            return next((m.kind for m in memories if m.origin <= address < m.origin + m.bytes), "host")

        used = dict.fromkeys(("flash", "sram", "external"), 0)
        for section in sections:
            kind = kind_at(section.address)
            if kind == "host":
                kind = "sram" if section.writable else "flash"
            kind = "flash" if kind == "boot" else kind
            used[kind] += section.bytes
            if section.stored and kind != "flash":
                used["flash"] += section.bytes
        return LinkedSizes(used["flash"], used["sram"], used["external"])

    def flash(self, options: StartOptions | None = None) -> GeneratedProject:
        """Put the program on the board; an emulator and this machine load it when it starts."""
        if not self.program_path.exists():
            raise BoardError("flash", self.library, "not built", "a built project", "call build() first")
        flash(self.board, self.program_path, options or StartOptions())
        return self

    def open_transport(self, options: StartOptions | None = None) -> Connection:
        """Start the program and open the byte stream to it."""
        return start(self.board, self.program_path, options or StartOptions())
