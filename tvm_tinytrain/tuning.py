"""tune(): better knobs for a network's kernels, measured on the board itself."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tvm import tirx

from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.early_checks import check_folder, check_output
from tvm_tinytrain.errors import BoardError, PlanError, TargetError
from tvm_tinytrain.passes.kernels.builder import kernel_kind
from tvm_tinytrain.schedules.blocks import describe
from tvm_tinytrain.schedules.records import Record, save_records, tunable_rule, workload_key
from tvm_tinytrain.schedules.scratch import scratch_folder
from tvm_tinytrain.schedules.tune import Measure, UntunableError
from tvm_tinytrain.targets.boards import Board, get_board
from tvm_tinytrain.targets.target import Target, parse_target
from tvm_tinytrain.tune_workers import Found, Job, tune_in_processes
from tvm_tinytrain.values import as_whole

PACKAGES = ("tvm_tinytrain", "apache-tvm", "xgboost-cpu")
_LOG = logging.getLogger(__name__)


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
    port: str | None = None,
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
        For `build`, of kind ``c`` and for the board's core; default: the board's.
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
        asks for more than one needs ``if __name__ == "__main__":``. Not together with ``measure``, nor where time is measured: on a
        real board, or this machine.
    port
        Where a real board is, see `Session`; not together with ``measure``.
    build_options
        For `build`, where ``mod`` is no library that is built already.

    Returns
    -------
    list of Record
        One for each distinct kernel that has knobs, in order of their workloads; less those whose rule's own choice fails on the board,
        each of which is a warning in the log.

    Raises
    ------
    BoardError
        Unknown board; one that cannot be reached, or whose port is missing.
    TransportError
        The board does not start.
    UntunableError
        The rule's own choice fails for every kernel.
    TargetError
        The target is of another kind, or for another core than the board's.
    PlanError
        Numbers of no meaning; no library; options for `build` beside a library.
    ToolMissingError
        The board's compiler or emulator is not installed.
    ArchiveError
        ``work_dir`` holds another search, ``output`` or ``work_dir`` cannot be written.
    TinyTrainError
        What `build` raises.
    """
    chosen = get_board(board)
    trials, seed, processes = (
        as_whole("tune", name, value, least, f"give another {name}")
        for name, value, least in (("trials", trials, 1), ("seed", seed, 0), ("processes", processes, 1))
    )
    check_processes(chosen, processes, measure is not None)
    aim = parse_target(chosen.target if target is None else target)
    check_place(chosen, aim, port, measure is not None)
    check_output(None if output is None else Path(output))
    check_folder(Path(work_dir))
    distinct = distinct_kernels(_modules(mod, aim, build_options))
    kernels = [f for _, f in sorted(distinct.items()) if tunable_rule(f, aim.to_tvm()) is not None]
    job = Job(chosen, aim, trials, seed, unit_of(chosen), Path(work_dir) / chosen.name, port)
    records: dict[int, Record] = {}
    failures: list[UntunableError] = []
    done = 0

    def decided(index: int, count: int) -> None:
        if progress is not None:
            progress(Progress(describe(kernels[index]), done, len(kernels), min(count, trials), trials))

    def save() -> None:
        if output is not None:
            found = records.values()
            save_records(Path(output), found, command=command, versions=_versions(), board=chosen.name)

    if processes > 1:
        results = tune_in_processes(kernels, job, processes, decided)
    else:
        results = _one_by_one(kernels, job, measure, decided)
    for index, result in results:
        if isinstance(result, Record):
            records[index] = result
            save()
        elif result is not None:
            failures.append(result)
            _LOG.warning("%s", result)
        done += 1
    if failures and not records:
        raise failures[0]
    save()
    return [record for _, record in sorted(records.items())]


def _one_by_one(
    kernels: list[tirx.PrimFunc],
    job: Job,
    measure: Callable[[tirx.PrimFunc], Measure] | None,
    decided: Callable[[int, int], None],
) -> Iterator[tuple[int, Found]]:
    with scratch_folder(job.folder) as images:
        for index, func in enumerate(kernels):
            decided(index, 0)
            measured = job.measure(func, images) if measure is None else measure(func)
            yield index, job.run(func, measured, partial(decided, index))


def _modules(mod: Any, target: Target, options: dict[str, Any]) -> list[TrainModule]:
    built = [mod] if isinstance(mod, TrainModule) else mod
    if not isinstance(built, (list, tuple)) or not all(isinstance(m, TrainModule) for m in built):
        return [build(mod, target, **options)]
    if not built:
        raise PlanError("tune", "libraries", "none", "one or more", "build what is to be tuned")
    if options:
        hint = "give them to build, or give tune the network"
        raise PlanError("tune", ", ".join(options), "beside a built library", "options of a network", hint)
    return list(built)


def check_processes(board: Board, processes: int, elsewhere: bool) -> None:
    """Several kernels at once disturb each other where time is measured, and one that measures has one board."""
    if processes > 1 and (elsewhere or not board.is_emulated):
        hint = "several boards: see tune-worker"
        raise PlanError("tune", "processes", processes, "1, or more on an emulated board of its own", hint)


def check_place(board: Board, target: Target, port: str | None, elsewhere: bool) -> None:
    """Candidates are C that the board's compiler makes its core's code of, and a real board has to be named."""
    if target.kind != "c":
        hint = 'tune for the C target of the same core: build(..., "llvm ...") uses its records'
        raise TargetError("tune", f"target {target}", "kernels by LLVM", "kernels in C", hint)
    if target.core != board.target.core:
        hint = "choose a board with this core"
        raise TargetError(
            "tune", f"target {target} on {board.name}", target.core.name, board.target.core.name, hint
        )
    if port is not None and elsewhere:
        hint = "give the port to who measures, e.g. tune-worker --port"
        raise BoardError(
            "tune", f"{board.name}, port {port}", "beside another measurement", "one of the two", hint
        )
    if board.hardware and port is None and not elsewhere:
        hint = "say where the board is, or measure by workers: tune --tracker, tune-worker --port"
        raise BoardError("tune", board.name, "no port", "a serial device or an address", hint)


def distinct_kernels(modules: Iterable[TrainModule]) -> dict[str, tirx.PrimFunc]:
    """The kernels of ours in some libraries by their workload; of equal ones the first."""
    found: dict[str, tirx.PrimFunc] = {}
    for func in (f for module in modules for f in module.unscheduled):
        if kernel_kind(func) is not None:
            found.setdefault(workload_key(func), func)
    return found


def unit_of(board: Board) -> str:
    """The unit of what `Session.time` returns on a board."""
    if board.is_emulated:
        return "instructions"
    return "cycles" if board.target.core.is_microcontroller else "nanoseconds"


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}
