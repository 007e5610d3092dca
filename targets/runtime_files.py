"""The C runtime's files: which of them a board's program is made of."""

from __future__ import annotations

from pathlib import Path

from tvm_tinytrain.targets.boards import Board


def runtime_folder() -> Path:
    """Return the folder of the C runtime inside of the installed package."""
    return Path(__file__).resolve().parent / "runtime"


def runtime_sources(board: Board) -> tuple[str, ...]:
    """Return the C files that a board's program needs, relative to `runtime_folder`, in link order."""
    common = ("src/frame.c", "src/paint.c", "src/server.c", "src/main.c", f"port/{board.port}.c")
    core = board.target.core
    if not core.is_microcontroller:
        return common
    clock = () if board.port == "semihosting" else ("cortex_m/ticks_systick.c",)
    return (*common, "cortex_m/startup.c", "cortex_m/fault.c", f"cortex_m/mpu_{core.mpu}.c", *clock)


def runtime_headers() -> tuple[str, ...]:
    """Return the headers, relative to `runtime_folder`."""
    root = runtime_folder()
    found = [*root.glob("include/*.h"), *root.glob("cortex_m/*.h"), *root.glob("port/*.h")]
    return tuple(sorted(path.relative_to(root).as_posix() for path in found))
