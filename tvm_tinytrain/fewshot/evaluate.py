"""Many tasks, every method, over processes and machines, in a file that a broken run goes on from.

Workers are processes of this machine. Over machines the same program runs under ``torchrun``, which torch brings
along (Ray would be one more dependency): rank r takes the tasks r, r + world, …, keeps them in a file of its own, and
rank 0 merges them (`ranks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tvm_tinytrain.fewshot.datasets import Dataset
from tvm_tinytrain.fewshot.episodes import Sampler, sample_episode
from tvm_tinytrain.fewshot.methods import LibraryFiles, Method
from tvm_tinytrain.fewshot.ranks import Ranks
from tvm_tinytrain.fewshot.results import Record, Results
from tvm_tinytrain.fewshot.tasks import AdaptOptions, RestartableLibrary, run_task

Loader = Callable[[LibraryFiles], RestartableLibrary]
"""Loads a library into a worker process; must be picklable. `tvm_tinytrain.micro.in_process.InProcess` is one."""


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

    def describe(self) -> dict[str, Any]:
        """What decides the records, for the results' file. The number of episodes may grow when a run goes on."""
        return {
            "network": self.network,
            "libraries": {m.name: m.library.metadata["digest"] for m in self.methods},
            "datasets": {d.name: [len(d.classes), sum(d.sizes)] for d in self.datasets},
            "samplers": [s.name for s in self.samplers],
            "adapt": asdict(self.options),
            "seed": self.seed,
        }

    def jobs(self) -> list[tuple[int, int, int]]:
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

    load: makes a library in the process that uses it. processes: workers; 1 runs here. progress: called with the
    tasks that are done and their number. Under torchrun each rank runs its share; only rank 0 returns all. Raises
    TransportError where a rank is lost; what the others finished stays in files beside `path`.
    """
    with Ranks.joined() as ranks:
        results = ranks.load(path, contest.describe())
        done = results.done()
        jobs = [job for job in ranks.share(contest.jobs()) if not _is_done(contest, job, done)]
        for count, records in enumerate(_run(contest, load, jobs, processes), start=1):
            results.records += records
            if path is not None:
                results.save(ranks.own_file(path))
            if progress is not None:
                progress(count, len(jobs))
        ranks.gather(results)
        _order(contest, results)
        if path is not None and ranks.rank == 0:
            results.save(path)
        ranks.finish(path)
    return results


def _is_done(contest: Contest, job: tuple[int, int, int], done: set[tuple[str, str, str, int, str]]) -> bool:
    d, s, e = job
    prefix = (contest.network, contest.datasets[d].name, contest.samplers[s].name, e)
    return all((*prefix, m.name) in done for m in contest.methods)


def _order(contest: Contest, results: Results) -> None:
    """Sort as the tables read, whichever worker was first."""
    domains = {d.name: i for i, d in enumerate(contest.datasets)}
    samplers = {s.name: i for i, s in enumerate(contest.samplers)}
    methods = {m.name: i for i, m in enumerate(contest.methods)}
    unique = {record.key: record for record in results.records}

    def place(record: Record) -> tuple[int, int, int, int]:
        return (
            samplers[record.sampler],
            domains[record.domain],
            methods[record.outcome.method],
            record.episode,
        )

    results.records[:] = sorted(unique.values(), key=place)


def _run(
    contest: Contest, load: Loader, jobs: Sequence[tuple[int, int, int]], processes: int
) -> Iterator[list[Record]]:
    if processes <= 1 or len(jobs) <= 1:
        with ExitStack() as stack:
            worker = _Worker(contest, load, stack)
            for job in jobs:
                yield worker(job)
        return
    context = get_context("spawn")  # a fork would copy the threads' locks of TVM and torch
    with ProcessPoolExecutor(processes, context, _begin, (contest, load)) as pool:
        waiting: set[Future[list[Record]]] = {pool.submit(_work, job) for job in jobs}
        while waiting:
            ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ready:
                yield future.result()


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

    def __call__(self, job: tuple[int, int, int]) -> list[Record]:
        contest = self.contest
        dataset, sampler, number = contest.datasets[job[0]], contest.samplers[job[1]], job[2]
        episode = sample_episode(dataset, sampler, contest.seed, number)
        size = sum(len(rows) for rows in episode.support)
        outcomes = run_task(episode, contest.methods, self.libraries, contest.options, contest.seed + number)
        return [
            Record(contest.network, dataset.name, sampler.name, number, episode.ways, size, o)
            for o in outcomes
        ]


_worker: _Worker | None = None


def _begin(contest: Contest, load: Loader) -> None:
    global _worker
    _worker = _Worker(contest, load, ExitStack())


def _work(job: tuple[int, int, int]) -> list[Record]:
    assert _worker is not None
    return _worker(job)
