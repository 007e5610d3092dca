"""Many tasks, every method, over processes and machines, in a file that a broken run goes on from.

Workers are processes of this machine. Over machines the same program runs under ``torchrun``, which torch brings
along (Ray would be one more dependency): rank r takes the tasks r, r + world, …, keeps them in a file of its own, and
rank 0 merges them (`ranks`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from pickle import Pickler
from typing import Any, TypeVar

from tvm_tinytrain.errors import PlanError, TransportError
from tvm_tinytrain.fewshot.datasets import Dataset
from tvm_tinytrain.fewshot.describing import describe, describe_fields
from tvm_tinytrain.fewshot.episodes import Episode, Sampler, check_tasks, sample_episode
from tvm_tinytrain.fewshot.methods import LibraryFiles, Method
from tvm_tinytrain.fewshot.ranks import Ranks
from tvm_tinytrain.fewshot.results import HeldOut, Record, Results, Task
from tvm_tinytrain.fewshot.tasks import (
    AdaptOptions,
    RestartableLibrary,
    best_rate,
    held_out_trials,
    name_of,
    run_task,
)
from tvm_tinytrain.interrupts import ctrl_c_waits

Loader = Callable[[LibraryFiles], RestartableLibrary]
"""Loads a library into a worker process; must be picklable. `tvm_tinytrain.micro.in_process.InProcess` is one."""


Job = tuple[int, int, int]
"""Data set, sampler, episode."""
Key = tuple[Task, str, str]
"""Task, method, what its rate is chosen for."""
Losses = Mapping[str, Mapping[str, float]]
"""{method: {rate: cross-entropy of what was held out}}."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Contest:
    """A network's methods on data sets: tasks 0 … episodes-1 of `seed` for each data set and sampler."""

    network: str
    methods: tuple[Method, ...]
    datasets: tuple[Dataset, ...]
    samplers: tuple[Sampler, ...]
    episodes: int
    options: AdaptOptions
    seed: int = 0

    def __post_init__(self) -> None:
        named = {"data sets": self.datasets, "samplers": self.samplers, "methods": self.methods}
        for thing, members in named.items():
            names = [m.name for m in members]
            if len(set(names)) < len(names) or not all(names):
                hint = "they are the names of the rows: rename one, or evaluate one after the other"
                raise PlanError("evaluate", thing, ", ".join(map(repr, names)), "names that differ", hint)

    def describe(self) -> dict[str, Any]:
        """What decides the records, for the results' file. The number of episodes may grow when a run goes on."""
        return {
            "network": self.network,
            "libraries": {m.name: m.library.metadata["digest"] for m in self.methods},
            "datasets": {d.name: [len(d.classes), sum(d.sizes), d.digest()] for d in self.datasets},
            "samplers": {s.name: describe(s) for s in self.samplers},
            "adapt": describe_fields(self.options),
            "seed": self.seed,
        }

    @property
    def tunes(self) -> bool:
        """Whether there is a rate to choose."""
        return len(self.options.rates) > 1 and any(m.trains for m in self.methods)

    def task(self, job: Job) -> Task:
        """The names of a job's task."""
        return self.network, self.datasets[job[0]].name, self.samplers[job[1]].name, job[2]

    def jobs(self) -> list[Job]:
        """(data set, sampler, episode) of every task; all domains get their first task before any its second."""
        return [
            (d, s, e)
            for e in range(self.episodes)
            for s in range(len(self.samplers))
            for d in range(len(self.datasets))
        ]


def evaluate(
    contest: Contest,
    load: Loader,
    *,
    path: Path | None = None,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Run what is missing in `path` and return all records.

    First what held-out samples say of the rates on every task, then the tasks at the rates chosen. load: makes a library
    in the process that uses it. processes: workers; 1 runs here. progress: called with what is done and its number, both
    counted over these two. Under torchrun each rank runs its share; only rank 0 returns all. Raises PlanError, before any
    work, where a data set is too small for a task or something cannot travel to other processes; TransportError where a rank
    or a worker is lost; what was finished stays in files beside `path`. Ctrl-C ends it at once and drops the unfinished tasks.
    """
    with Ranks.joined() as ranks, _Workers(contest, load, processes) as workers:
        _check(contest, load, processes)
        results = ranks.load(path, contest.describe())
        ranks.meet()
        kept = 1 + max((r.episode for r in (*results.records, *results.held_out)), default=-1)
        if kept > contest.episodes:  # fewer would choose other rates and mix them with what is there
            hint = "ask for as many, or name another file"
            raise PlanError("evaluate", f"episodes in {path}", kept, f"at most {contest.episodes}", hint)
        jobs = ranks.share(contest.jobs())
        tuned = {h.task for h in results.held_out}
        to_tune = [job for job in jobs if contest.tunes and contest.task(job) not in tuned]
        done, total = 0, len(to_tune) + len(_to_run(contest, results, jobs))

        def finished(records: list[Record], held_out: list[HeldOut]) -> None:
            nonlocal done
            done += 1
            results.add(records, held_out)
            if path is not None:
                results.save(ranks.own_file(path))
            if progress is not None:
                progress(done, total)

        for held_out in workers.each(_tune, [(job,) for job in to_tune]):
            finished([], [held_out])
        ranks.spread(results)
        rates = _choose(contest, results)
        stale = {key for key, rate in results.done().items() if rates.get(key, rate) != rate}
        results.records[:] = [r for r in results.records if r.key not in stale]
        to_run = _to_run(contest, results, jobs)
        total = done + len(to_run)
        for records in workers.each(_adapt, [(job, _rates_of(contest, job, rates)) for job in to_run]):
            finished(records, [])
        ranks.gather(results)
        _order(contest, results)
        if path is not None and ranks.rank == 0:
            results.save(path)
        ranks.finish(path)
    return results


def _check(contest: Contest, load: Loader, processes: int) -> None:
    """PlanError, before any work, where no task can be drawn, or where something cannot travel to other processes."""
    for data, sampler in product(contest.datasets, contest.samplers):
        check_tasks("evaluate", data, sampler, contest.seed)
    if processes <= 1:
        return
    readers = {f"data set {d.name}": d.reader for d in contest.datasets}
    for thing, part in {**readers, "augment": contest.options.augment, "load": load}.items():
        try:
            Pickler(_Nowhere()).dump(part)
        except Exception as error:  # pickle raises several kinds
            hint = "define its function or class at the top of a module, or ask for one process"
            raise PlanError("evaluate", thing, error, "what another process can be given", hint) from error


class _Nowhere:
    """Where a test of pickling writes to, so that large arrays are not held twice."""

    def write(self, part: Any) -> int:
        return memoryview(part).nbytes


def _to_run(contest: Contest, results: Results, jobs: Sequence[Job]) -> list[Job]:
    """The jobs that lack a record."""
    done = results.done()

    def is_done(job: Job) -> bool:
        wanted = product(contest.methods, contest.options.rate_by)
        return all((contest.task(job), m.name, by) in done for m, by in wanted)

    return [job for job in jobs if not is_done(job)]


def _choose(contest: Contest, results: Results) -> dict[Key, float]:
    """The rate of every task, method and choice."""
    losses = {h.task: h.losses for h in results.held_out}
    domains: dict[tuple[str, ...], list[Task]] = {}
    for job in contest.jobs():
        task = contest.task(job)
        domains.setdefault(task[:-1], []).append(task)
    chosen: dict[Key, float] = {}
    for peers, method, by in product(domains.values(), contest.methods, contest.options.rate_by):
        for deciding in [peers] if by == "domain" else [[task] for task in peers]:
            rate = _rate(contest, method, losses, deciding, peers) if method.trains else 0.0
            chosen |= {(task, method.name, by): rate for task in deciding}
    return chosen


def _rate(
    contest: Contest, method: Method, losses: Mapping[Task, Losses], deciding: list[Task], peers: list[Task]
) -> float:
    """By the tasks that decide; by all of the domain where those can spare no sample. PlanError where none can."""
    for tasks in (deciding, peers):
        found = [losses[t].get(method.name, {}) for t in tasks if t in losses]
        rate = best_rate(contest.options.rates, found)
        if rate is not None:
            return rate
    hint = "a class keeps one back if it has two or more: give more shots, or one rate"
    where, rates = f"{peers[0][1]}, {peers[0][2]}", ", ".join(map(name_of, contest.options.rates))
    raise PlanError("evaluate", where, f"rates {rates} and no support sample to choose by", "one", hint)


def _rates_of(contest: Contest, job: Job, rates: Mapping[Key, float]) -> dict[str, dict[str, float]]:
    """{method: {choice: rate}} of one job."""
    task = contest.task(job)
    return {m.name: {by: rates[task, m.name, by] for by in contest.options.rate_by} for m in contest.methods}


def _order(contest: Contest, results: Results) -> None:
    """Sort as the tables read, whichever worker was first."""
    domains = {d.name: i for i, d in enumerate(contest.datasets)}
    samplers = {s.name: i for i, s in enumerate(contest.samplers)}
    methods = {m.name: i for i, m in enumerate(contest.methods)}
    choices = {by: i for i, by in enumerate(contest.options.rate_by)}

    def place(record: Record) -> tuple[int, ...]:
        return (
            choices[record.rate_by],
            samplers[record.sampler],
            domains[record.domain],
            methods[record.outcome.method],
            record.episode,
        )

    results.records.sort(key=place)


class _Worker:
    """A contest with its libraries loaded."""

    def __init__(self, contest: Contest, load: Loader, stack: ExitStack) -> None:
        self.contest = contest
        needed = {m.library.name: m.library for m in contest.methods}
        self.libraries = {name: load(files) for name, files in needed.items()}
        for library in self.libraries.values():
            close = getattr(library, "close", None)
            if close is not None:
                stack.callback(close)

    def episode(self, job: Job) -> Episode:
        """Draw the job's task."""
        contest = self.contest
        return sample_episode(contest.datasets[job[0]], contest.samplers[job[1]], contest.seed, job[2])


def _tune(worker: _Worker, job: Job) -> HeldOut:
    c = worker.contest
    trials = held_out_trials(worker.episode(job), c.methods, worker.libraries, c.options, c.seed + job[2])
    losses = {name: trial.losses for name, trial in trials.items()}
    return HeldOut(*c.task(job), losses, tuple(name for name, t in trials.items() if t.fits_nothing))


def _adapt(worker: _Worker, job: Job, rates: Mapping[str, Mapping[str, float]]) -> list[Record]:
    c, episode = worker.contest, worker.episode(job)
    wanted = {name: by.values() for name, by in rates.items()}
    outcomes = run_task(episode, c.methods, worker.libraries, c.options, c.seed + job[2], wanted)
    size = sum(len(rows) for rows in episode.support)
    found = {(o.method, o.rate): o for o in outcomes}
    return [
        Record(*c.task(job), episode.ways, size, by, found[name, rate])
        for name, chosen in rates.items()
        for by, rate in chosen.items()
    ]


_worker: _Worker | None = None


def _begin(contest: Contest, load: Loader, evaluation: Connection) -> None:
    global _worker
    threading.Thread(target=_end_with, args=(evaluation,), daemon=True).start()
    _worker = _Worker(contest, load, ExitStack())


def _end_with(evaluation: Connection) -> None:
    """End this process once the other end of the pipe is closed: there, or because that process is no more."""
    evaluation.poll(None)
    os._exit(1)


def _work(do: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    assert _worker is not None
    return do(_worker, *args)


class _Workers:
    """One worker here, or one in each of several processes; begun when there is work."""

    def __init__(self, contest: Contest, load: Loader, processes: int) -> None:
        self.contest, self.load, self.processes = contest, load, processes
        self._stack = ExitStack()
        self._pool: ProcessPoolExecutor | None = None
        self._alive: Connection | None = None
        self._here: _Worker | None = None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._pool is not None and self._alive is not None:
            self._pool.shutdown(wait=error is None, cancel_futures=True)
            self._alive.close()
        self._stack.close()

    def each(self, do: Callable[..., _Answer], items: Sequence[tuple[Any, ...]]) -> Iterator[_Answer]:
        """``do(worker, *item)`` for every item, as they end."""
        if self._pool is None and (self.processes <= 1 or len(items) <= 1):
            for item in items:
                self._here = self._here or _Worker(self.contest, self.load, self._stack)
                yield do(self._here, *item)
            return
        if self._pool is None:
            context = get_context("spawn")  # a fork would copy the threads' locks of TVM and torch
            theirs, self._alive = context.Pipe(duplex=False)
            begin = (self.contest, self.load, theirs)
            self._pool = ProcessPoolExecutor(self.processes, context, _begin, begin)
        with ctrl_c_waits():
            waiting: set[Future[_Answer]] = {self._pool.submit(_work, do, item) for item in items}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                try:
                    answer = future.result()
                except BrokenProcessPool as error:
                    hint = "see what ended it, e.g. too little memory; the same command goes on where it was"
                    found = "one that ended"
                    raise TransportError("evaluate", "process", found, "one that lives", hint) from error
                yield answer
