"""tune(): better knobs for a network's kernels, measured on the board itself."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tvm import tirx

from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.schedules.records import Record, save_records, tunable_rule, workload_key
from tvm_tinytrain.schedules.scratch import scratch_folder
from tvm_tinytrain.schedules.tune import Measure, Search, tune_kernel
from tvm_tinytrain.targets.boards import Board, get_board
from tvm_tinytrain.targets.target import parse_target
from tvm_tinytrain.tune_workers import Job, tune_in_processes

PACKAGES = ("tvm_tinytrain", "apache-tvm", "xgboost-cpu")


@dataclass(frozen=True)
class Progress:
    """How far `tune` is: ``index`` of ``kernels`` are done; of the one called ``kernel``, ``trials`` of ``most`` candidates are."""

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
    processes: int = 1,
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
    processes
        How many kernels are tuned at once on an emulated board; the records are the same. Each runs in a new process: a script that
        asks for more than one needs ``if __name__ == "__main__":``. Not together with ``measure``, and not on a real board.
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
    if not isinstance(trials, int) or trials < 1:
        raise PlanError("tune", "trials", trials, "1 or more", "give the number of candidates per kernel")
    chosen = get_board(board)
    if processes < 1 or (processes > 1 and (measure is not None or chosen.hardware)):
        hint = "several boards: see tune-worker"
        raise PlanError("tune", "processes", processes, "1, or more on an emulated board of its own", hint)
    aim = parse_target(chosen.target if target is None else target)
    found = distinct_kernels(_modules(mod, chosen.target if target is None else target, build_options))
    kernels = [f for _, f in sorted(found.items()) if tunable_rule(f, aim.to_tvm()) is not None]
    job = Job(chosen, aim, trials, seed, unit_of(chosen), Path(work_dir) / chosen.name)
    records: dict[int, Record] = {}
    done = 0

    def decided(index: int, count: int) -> None:
        if progress is not None:
            progress(Progress(describe(kernels[index]), done, len(kernels), min(count, trials), trials))

    if processes > 1:
        results = tune_in_processes(kernels, job, processes, decided)
    else:
        results = _one_by_one(kernels, job, measure, decided)
    for index, record in results:
        if record is not None:
            records[index] = record
        if output is not None:
            save_records(Path(output), records.values(), command=command, versions=_versions())
        done += 1
    return [record for _, record in sorted(records.items())]


def _one_by_one(
    kernels: list[tirx.PrimFunc],
    job: Job,
    measure: Callable[[tirx.PrimFunc], Measure] | None,
    decided: Callable[[int, int], None],
) -> Iterator[tuple[int, Record | None]]:
    with scratch_folder(job.folder) as images:
        for index, func in enumerate(kernels):
            decided(index, 0)
            report = partial(decided, index)
            if measure is None:
                yield index, job.run(func, images, report)
                continue
            search = Search(job.trials, job.seed, job.unit, report)
            yield index, tune_kernel(func, job.target.to_tvm(), measure(func), job.folder, search)


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
