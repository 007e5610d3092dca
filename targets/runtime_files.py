"""The C runtime's files: which of them a board's program is made of."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.targets.boards import Board
from tvm_tinytrain.targets.memory_map import mpu_initializer, mpu_regions

_RECEIVE_BYTES = {True: 64, False: 1024}  # a serial line brings single bytes


def runtime_folder() -> Path:
    """Return the folder of the C runtime inside of the installed package."""
    return Path(__file__).resolve().parent / "runtime"


def runtime_sources(board: Board) -> tuple[str, ...]:
    """Return the C files that a board's program needs, relative to `runtime_folder`, in link order.

    Raises BoardError where there is none for its byte stream.
    """
    ports = sorted(path.stem for path in (runtime_folder() / "port").glob("*.c"))
    if board.port not in ports:
        hint = "choose one of them, or add a C file to targets/runtime/port"
        raise BoardError("board", f"{board.name}, port", repr(board.port), ", ".join(ports), hint)
    common = ("src/frame.c", "src/paint.c", "src/server.c", "src/main.c", f"port/{board.port}.c")
    core = board.target.core
    if board.port == "rpc":
        return tuple(name for name in common if name != "src/main.c")
    if not core.is_microcontroller:
        return common
    clock = () if board.port == "semihosting" else ("cortex_m/ticks_systick.c",)
    return (*common, "cortex_m/startup.c", "cortex_m/fault.c", f"cortex_m/mpu_{core.mpu}.c", *clock)


STANDALONE_SOURCE = "src/standalone.c"
"""What a firmware that adapts by itself adds; it needs the headers of the library too."""


def runtime_headers() -> tuple[str, ...]:
    """Return the headers, relative to `runtime_folder`."""
    root = runtime_folder()
    found = [*root.glob("include/*.h"), *root.glob("cortex_m/*.h"), *root.glob("port/*.h")]
    return tuple(sorted(path.relative_to(root).as_posix() for path in found))


# Generated beside the runtime's own: tt_active.c, tt_config.h, TT_LINKED_ARENA_BYTES.
_GENERATED = ("active", "config", "linked")


@cache
def taken_names() -> tuple[str, ...]:
    """Return the names, in small letters, that no library may have: its files or its symbols would be the runtime's."""
    root = runtime_folder()
    found = set(_GENERATED)
    for path in root.rglob("*.[ch]"):
        if path.parent.name == "tests":
            continue
        if path.name.startswith("tt_"):
            found.add(path.stem.removeprefix("tt_"))
        if path.suffix == ".h":  # functions and the linker's symbols: tt_port_init(, tt_data_load[
            found.update(re.findall(r"\btt_([a-z0-9]+)_\w+[(\[]", path.read_text(encoding="utf-8")))
    return tuple(sorted(found))


def linked_arena_bytes(board: Board, arena_bytes: int) -> int:
    """Return the bytes that a program links for a library's arena: whole words, with the board's guard behind them."""
    return (arena_bytes + 3) // 4 * 4 + board.arena_guard_bytes


def runtime_config(board: Board, arena_bytes: int, *, standalone: bool = False) -> str:
    """Return ``tt_config.h``: what the C runtime must know of a board and of a library's arena."""
    lines = [
        "/* Generated: what the C runtime must know of this board and this library. */",
        f'#define TT_BOARD_NAME "{board.name}"',
        f"#define TT_STACK_BYTES {board.stack_bytes}",
        f"#define TT_FRAME_PAYLOAD {board.frame_payload_bytes}u",
        f"#define TT_RECEIVE_BYTES {_RECEIVE_BYTES[board.runner == 'serial']}",
        f"#define TT_LINKED_ARENA_BYTES {linked_arena_bytes(board, arena_bytes)}",
        f"#define TT_CLOCK_HZ {board.chip.clock_hz}u",
        f"#define TT_BAUD {board.baud}",
    ]
    if standalone:
        lines.append("#define TT_STANDALONE 1")
    if board.target.core.mpu != "none":
        lines.append(f"#define TT_MPU_REGIONS {mpu_initializer(mpu_regions(board))}")
    return "\n".join(lines) + "\n"
