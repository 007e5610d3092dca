"""tune(): better knobs for a network's kernels, measured on the board itself."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm import tirx

from tvm_tinytrain.board_measure import BoardMeasure
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.schedules.records import Record, save_records, tunable_rule, workload_key
from tvm_tinytrain.schedules.tune import Measure, Search, tune_kernel
from tvm_tinytrain.targets.boards import Board, get_board
from tvm_tinytrain.targets.target import parse_target

PACKAGES = ("tvm_tinytrain", "apache-tvm", "xgboost-cpu")


@dataclass(frozen=True)
class Progress:
    """How far `tune` is: kernel ``index`` of ``kernels``, called ``kernel``; ``trials`` of ``most`` candidates decided."""

    kernel: str
    index: int
    kernels: int
    trials: int
    most: int


def tune(
    mod: Any,
    target: object = None,
    *,
    board: str | Board = "mps2-an500",
    trials: int = 64,
    seed: int = 0,
    work_dir: str | Path = "build/tune",
    output: str | Path | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
    measure: Callable[[tirx.PrimFunc], Measure] | None = None,
    **build_options: Any,
) -> list[Record]:
    """Searches for the best knobs of each distinct kernel of a library.

    The search is MetaSchedule's, with XGBoost as cost model; every candidate runs on the board, many in one firmware image, and
    its result is compared with the kernel as written. The cost is executed instructions on an emulated board, else a time.

    Parameters
    ----------
    mod
        A `TrainModule`, several of them, or anything that `build` takes.
    target
        For `build`; default: the board's.
    board
        Where candidates run.
    trials
        Most candidates of one kernel.
    seed
        Decides the search: the same seed gives the same records.
    work_dir
        Outcomes by kernel: a second call with the same folder measures only what is missing.
    output
        File for the records, written after each kernel; None: nothing is written. ``build(..., records=output)`` uses it.
    command
        The command that the file says it was made with.
    progress
        Called after each batch of candidates.
    measure
        For each kernel something that measures its candidates; default: `BoardMeasure` on ``board``.
    build_options
        For `build`.

    Returns
    -------
    list of Record
        One for each distinct kernel that has knobs, in order of their workloads.

    Raises
    ------
    BoardError
        Unknown board.
    ToolMissingError
        The board's compiler or emulator is not installed.
    ArchiveError
        ``work_dir`` holds another search.
    TinyTrainError
        What `build` raises.
    """
    if trials < 1:
        raise PlanError("tune", "trials", trials, "1 or more", "give the number of candidates per kernel")
    chosen = get_board(board)
    core = parse_target(chosen.target if target is None else target).to_tvm()
    make = measure or (lambda func: BoardMeasure(func, chosen, seed))
    kernels = distinct_kernels(_modules(mod, chosen.target if target is None else target, build_options))
    kernels = {key: func for key, func in kernels.items() if tunable_rule(func, core) is not None}
    records = []
    for index, (_, func) in enumerate(sorted(kernels.items())):

        def decided(count: int, index: int = index, func: tirx.PrimFunc = func) -> None:
            if progress is not None:
                progress(Progress(describe(func), index, len(kernels), min(count, trials), trials))

        decided(0)
        search = Search(trials, seed, unit_of(chosen), decided)
        found = tune_kernel(func, core, make(func), Path(work_dir) / chosen.name, search)
        if found is not None:
            records.append(found)
        if output is not None:
            save_records(Path(output), records, command=command, versions=_versions())
    return records


def _modules(mod: Any, target: object, options: dict[str, Any]) -> list[TrainModule]:
    if isinstance(mod, TrainModule):
        return [mod]
    if isinstance(mod, (list, tuple)) and all(isinstance(m, TrainModule) for m in mod):
        return list(mod)
    return [build(mod, target, **options)]


def distinct_kernels(modules: Iterable[TrainModule]) -> dict[str, tirx.PrimFunc]:
    """The kernels of ours in some libraries by their workload; of equal ones the first."""
    found: dict[str, tirx.PrimFunc] = {}
    for func in (f for module in modules for f in module.unscheduled):
        if kernel_kind(func) is not None:
            found.setdefault(workload_key(func), func)
    return found


def describe(func: tirx.PrimFunc) -> str:
    """A kernel's kind and size for people."""
    spec = kernel_spec(func)
    kind = str(kernel_kind(func))
    sizes = [spec.get(k) for k in ("in_channels", "out_channels", "height", "width")]
    if None in sizes:
        sizes = [spec.get(k) for k in ("rows", "in_features", "out_features")]
    return kind + "".join(f" {s}" for s in sizes if s is not None)


def unit_of(board: Board) -> str:
    """The unit of what `Session.time` returns on a board."""
    if board.runner.startswith("qemu"):
        return "instructions"
    return "cycles" if board.target.core.is_microcontroller else "nanoseconds"


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
