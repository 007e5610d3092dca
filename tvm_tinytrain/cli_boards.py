"""The subcommands ``bench``, ``boards`` and ``project`` of ``tinytrain``: what is done with an archive on a board."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_tinytrain.cli_adapt import board_options
from tvm_tinytrain.errors import BoardError, TransportError
from tvm_tinytrain.targets.boards import DEFAULT_BOARD, get_board

if TYPE_CHECKING:
    from rich.table import Table

_BENCH = """example:
  tinytrain bench network.tar --board mps2-an500 --by-function --estimate stm32f746g-disco,nucleo-h743zi
An emulator counts executed instructions exactly; the same input gives the same count. Estimates of time and energy are just that.
What a task-adaptive library computes depends on what it selects: no MACs are printed for it.
"""
_BOARDS = """example:
  tinytrain boards --json
"""
_PROJECT = """example:
  tinytrain project network.tar --board mps2-an500 -o build/firmware --build
  tinytrain project network.tar --kind arduino -o TinyTrainDigits
kinds: board (C sources, runtime and linker script for one board, which a Session drives), bare-metal (the same, driven by letters
over a byte stream), zephyr (a module with a sample), arduino (a library with a sketch), cmake (a project that finds this package).
"""
_ONE_LINE = 500
KINDS = ("board", "bare-metal", "zephyr", "arduino", "cmake")
_RAW = argparse.RawDescriptionHelpFormatter


def add_commands(commands: Any) -> None:
    """Add the subcommands to the parser of ``tinytrain``."""
    _add_bench(commands)
    _add_boards(commands)
    _add_project(commands)


def _add_bench(commands: Any) -> None:
    p = commands.add_parser(
        "bench", help="instructions of each entry on an emulated board", epilog=_BENCH, formatter_class=_RAW
    )
    board_options(p)
    p.add_argument(
        "--entries", help="comma-separated, in the order of the calls (default: all that can be called)"
    )
    p.add_argument("--by-function", action="store_true", help="also the functions that take most")
    p.add_argument("--estimate", metavar="BOARDS", help="estimate seconds and energy on these boards")
    p.add_argument("--json", action="store_true", help="print the counts as JSON")
    p.set_defaults(run=_bench)


def _bench(a: argparse.Namespace) -> int:
    from rich.console import Console

    from tvm_tinytrain.build import load
    from tvm_tinytrain.micro import Session

    module = load(a.archive)
    board = get_board(a.board)
    targets = [get_board(name) for name in a.estimate.split(",")] if a.estimate else []
    _estimates(targets, 0, board)  # what cannot be estimated is refused before the work
    console = Console(stderr=True)
    with (
        console.status(f"building and starting {a.board}") as status,
        Session(module, a.board, port=a.port, by_function=a.by_function) as session,
    ):
        unit, rows = session.time_unit, []
        for entry in _entries(a, session):
            status.update(f"{entry} on {a.board}")
            row = _measure(session, module.metadata, entry, by_function=a.by_function)
            row["estimates"] = _estimates(targets, row["count"], board) if "count" in row else []
            rows.append(row)
        memory = session.memory()
    if a.json:
        print(json.dumps({"board": a.board, "unit": unit, "entries": rows, "memory": memory}, indent=1))
        return 0
    has_macs = any(row["macs"] for row in rows)
    head = ["entry", unit, *(["MACs", "per MAC"] if has_macs else []), *(b.name for b in targets)]
    table = _table(*head)
    for row in rows:
        cells = [row["entry"], f"{row['count']:,}" if "count" in row else row["refused"]]
        if has_macs:
            per = f"{row['count'] / row['macs']:.2f}" if row["macs"] and "count" in row else "–"
            cells += [f"{row['macs']:,}" if row["macs"] else "–", per]
        table.add_row(*cells, *([_estimate_text(e) for e in row["estimates"]] or ["–"] * len(targets)))
    print(f"{unit} on {a.board}" + "; time and energy of the others are estimates" * bool(targets))
    _print(table)
    for row in rows:
        for name, count in row.get("functions", {}).items():
            print(f"{row['entry']:<20} {count:>14,}  {name}")
    print(f"arena {memory['arena_high_water_bytes']:,} of {memory['arena_bytes']:,} B, stack {memory['stack_bytes']:,} B, "
          f"flash {memory['flash_bytes']:,} B, SRAM linked {memory['sram_bytes_linked']:,} B")  # fmt: skip
    return 0


def _entries(a: argparse.Namespace, session: Any) -> list[str]:
    known = [entry for entry in session.entries if entry != "init"]
    if a.entries is None:
        order = (
            "fisher_begin",
            "fisher",
            "select",
            "accumulate",
            "accumulate_store",
            "accumulate_cached",
            "step",
            "apply",
        )
        first = [e for e in order if e in known]
        return first + [e for e in known if e not in first and e not in ("install", "release")]
    wanted = [name.strip() for name in a.entries.split(",")]
    for name in wanted:
        if name not in known:
            raise BoardError("bench", "entry", repr(name), ", ".join(known), "choose some of them")
    return wanted


def _measure(session: Any, metadata: Mapping[str, Any], entry: str, *, by_function: bool) -> dict[str, Any]:
    """Counts one call, its inputs written anew; an entry that refuses says why.

    The multiply-accumulates are None for a task-adaptive library: what a call does depends on what is selected.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    for name, tensor in session.tensors.items():
        if tensor.role == "input" or name == "seed":
            values = (
                rng.normal(size=tensor.shape)
                if tensor.dtype == np.float32
                else rng.integers(0, 127, tensor.shape)
            )
            session.write(name, values.astype(tensor.dtype))
        elif tensor.role == "label":
            session.write(name, np.zeros(tensor.shape, tensor.dtype))
    macs = None if "adaptive" in metadata else int(metadata.get("macs", {}).get(entry, 0))
    row: dict[str, Any] = {"entry": entry, "macs": macs}
    try:
        row["count"] = int(session.time(entry))
    except TransportError as error:
        if "status" not in str(error.found):
            raise
        return {**row, "refused": str(error.found)}
    if by_function:
        counts = sorted(session.function_instructions().items(), key=lambda item: -item[1])
        row["functions"] = dict(counts[:8])
    return row


def _estimates(targets: list[Any], count: int, board: Any) -> list[dict[str, Any]]:
    from tvm_tinytrain.targets.estimate import estimate

    found = []
    for target in targets:
        made = estimate(target, count, board)
        found.append({"board": target.name, "seconds": made.seconds, "energy_joules": made.energy_joules})
    return found


def _table(*columns: str, whole: int = 1) -> Table:
    """A table whose first columns stay whole in any width; words of the others are folded, none is cut."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    made = [Column(name, no_wrap=i < whole, overflow="fold") for i, name in enumerate(columns)]
    return Table(*made, box=SIMPLE_HEAD, pad_edge=False)


def _print(table: Table) -> None:
    """Print a table in the terminal's width; in a pipe or a file each row is one line."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _ONE_LINE
    console.print(table)


def _estimate_text(row: dict[str, Any]) -> str:
    energy = "" if row["energy_joules"] is None else f", {row['energy_joules'] * 1e3:.3g} mJ"
    return f"{row['seconds'] * 1e3:.3g} ms{energy}"


def _add_boards(commands: Any) -> None:
    p = commands.add_parser(
        "boards", help="boards, and what is missing for them here", epilog=_BOARDS, formatter_class=_RAW
    )
    p.add_argument("--json", action="store_true", help="print the list as JSON")
    p.set_defaults(run=_boards)


def _boards(a: argparse.Namespace) -> int:
    from tvm_tinytrain.targets.boards import BOARDS
    from tvm_tinytrain.targets.tools import how_to_get, missing_tools

    rows: list[dict[str, Any]] = []
    for board in BOARDS.values():
        missing = missing_tools(board.all_tools)
        memories = [
            {"name": m.name, "kind": m.kind, "origin": m.origin, "bytes": m.bytes}
            for m in board.chip.memories
        ]
        rows.append({
            "name": board.name, "target": str(board.target), "core": board.chip.core, "note": board.note,
            "clock_hz": board.chip.clock_hz, "memories": memories,
            "missing": list(missing), "how_to_get": [how_to_get(tool) for tool in missing],
        })  # fmt: skip
    if a.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = _table("board", "core", "flash", "SRAM", "runs", "missing", whole=2)
    for row in rows:
        sizes = {m["kind"]: f"{m['bytes'] // 1024:,} KB" for m in reversed(row["memories"])}
        absent = ", ".join(row["missing"]) or "nothing"
        table.add_row(
            row["name"],
            row["core"],
            sizes.get("flash", ""),
            sizes.get("sram", ""),
            _runs(row["name"]),
            absent,
        )
    _print(table)
    print('target of a board: "c -mcpu=<core>", or "llvm -mcpu=<core>"; of host: "host", or "llvm"')
    print(f"linked only: {next(board.note for board in BOARDS.values() if board.hardware)}")
    for line in sorted({line for row in rows for line in row["how_to_get"]}):
        print(line)
    return 0


def _runs(name: str) -> str:
    board = get_board(name)
    return "linked only" if board.hardware else "emulated" if board.is_emulated else "here"


def _add_project(commands: Any) -> None:
    p = commands.add_parser(
        "project",
        help="sources around an archive: for a board, Zephyr, Arduino, CMake",
        epilog=_PROJECT,
        formatter_class=_RAW,
    )
    p.add_argument("archive", type=Path, help="archive that tinytrain compile or module.export() wrote")
    p.add_argument("-o", "--output", required=True, type=Path, help="folder to write")
    p.add_argument("--kind", choices=KINDS, default="board", help="default: board")
    p.add_argument("--board", help=f"of kind board and bare-metal (default: {DEFAULT_BOARD})")
    p.add_argument("--build", action="store_true", help="compile and link it too (kind board)")
    p.add_argument("--json", action="store_true", help="print what was written as JSON")
    p.set_defaults(run=_project)


def _project(a: argparse.Namespace) -> int:
    from rich.console import Console

    from tvm_tinytrain.build import load
    from tvm_tinytrain.micro import generate_project

    module = load(a.archive)
    board = DEFAULT_BOARD if a.board is None else a.board
    found: dict[str, Any] = {"kind": a.kind, "folder": str(a.output)}
    if a.kind != "board":
        if a.build:
            allowed, hint = "--kind board", "build it with the tools of its own"
            raise BoardError("project", "--build", f"--kind {a.kind}", allowed, hint)
        from tvm_tinytrain.micro.exports import export_project

        found["files"] = [str(p) for p in export_project(module, a.kind, a.output, a.board)]
    else:
        project = generate_project(module, board, a.output)
        found |= {"board": board, "files": sorted(str(p) for p in project.folder.rglob("*") if p.is_file())}
        if a.build:
            with Console(stderr=True).status(f"compiling for {board}"):
                sizes = project.build().sizes()
            found |= {"program": str(project.program_path), "flash_bytes": sizes.flash_bytes,
                      "sram_bytes": sizes.sram_bytes, "external_bytes": sizes.external_bytes}  # fmt: skip
    if a.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"wrote {len(found['files'])} files to {a.output}")
    if "program" in found:
        print(f"linked {found['program']}: flash {found['flash_bytes']:,} B, SRAM {found['sram_bytes']:,} B")
    return 0
