"""The board tables as CMake sees them: one file per board, written from `BOARDS` and kept beside the package.

python -m tvm_tinytrain.targets.cmake_boards          writes them again after a change of the tables
"""

from __future__ import annotations

from pathlib import Path

from tvm_tinytrain.targets.boards import BOARDS, Board
from tvm_tinytrain.targets.cores import cores_run_by
from tvm_tinytrain.targets.memory_map import linker_script_of
from tvm_tinytrain.targets.runtime_files import runtime_config, runtime_sources

_PROGRAM_BYTES = 4096


def cmake_folder() -> Path:
    """Return the folder with ``tvm_tinytrain-config.cmake``, to be passed as ``-Dtvm_tinytrain_DIR=``."""
    return Path(__file__).resolve().parent / "cmake"


def cmake_board(board: Board) -> str:
    """Return a board as CMake variables: core, cores whose objects it runs, flags, sources, configuration, linker script."""
    config = [
        line
        for line in runtime_config(board, 0).splitlines()
        if line.startswith("#define") and "ARENA" not in line
    ]
    lines = [
        "# Written by `python -m tvm_tinytrain.targets.cmake_boards` from targets/boards.py and targets/chips.py.",
        f"set(TINYTRAIN_BOARD_CORE {board.target.core.name})",
        f"set(TINYTRAIN_BOARD_OBJECTS {' '.join(cores_run_by(board.target.core))})",
        f"set(TINYTRAIN_BOARD_TRIPLE {board.target.core.triple})",
        f"set(TINYTRAIN_BOARD_FLAGS {' '.join(board.target.core.cflags)})",
        f"set(TINYTRAIN_BOARD_SOURCES {' '.join(runtime_sources(board))})",
        f"set(TINYTRAIN_BOARD_ARENA_GUARD {board.arena_guard_bytes})",
        f"set(TINYTRAIN_BOARD_RUNNER {board.runner})",
        f'set(TINYTRAIN_BOARD_MACHINE "{board.machine}")',
        "set(TINYTRAIN_BOARD_CONFIG [[",
        *config,
        "]])",
    ]
    if board.target.core.is_microcontroller:
        memories = board.chip.arena_memories()
        # `@arena@`: the name of the one that tinytrain_add_firmware chooses
        script = linker_script_of(board, memories, "@arena@").rstrip()
        lines += [
            f"set(TINYTRAIN_BOARD_ARENA_MEMORIES {' '.join(m.name for m in memories)})",
            f"set(TINYTRAIN_BOARD_ARENA_MEMORY_BYTES {' '.join(str(m.bytes) for m in memories)})",
            f"set(TINYTRAIN_BOARD_BESIDE_ARENA {_beside_arena(board)})",
            "set(TINYTRAIN_BOARD_LINKER_SCRIPT [[",
            script,
            "]])",
        ]
    return "\n".join(lines) + "\n"


def _beside_arena(board: Board) -> int:
    """At least what a firmware keeps in SRAM beside the arena: the stack, frames that come and go, and its own data."""
    return board.stack_bytes + 3 * board.frame_payload_bytes + _PROGRAM_BYTES


def cmake_boards() -> dict[str, str]:
    """Return the files of all boards that another machine can build for: file name -> content."""
    return {
        f"{board.name}.cmake": cmake_board(board) for board in BOARDS.values() if board.runner != "process"
    }


def main() -> None:
    """Write the files of all boards."""
    for name, text in cmake_boards().items():
        (cmake_folder() / "boards" / name).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
