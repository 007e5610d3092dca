"""Several kernels tuned at once, each in a process of its own.

MetaSchedule's search is one thread of Python, and its guesses come from numpy's one global generator: two searches in one process would
disturb each other. A process ends with the one that started it, so that a search that was killed leaves nobody writing in its journals.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from tvm_tinytrain.board_measure import BoardMeasure
from tvm_tinytrain.errors import ArchiveError, TinyTrainError, TransportError
from tvm_tinytrain.interrupts import ctrl_c_waits
from tvm_tinytrain.schedules.records import Record
from tvm_tinytrain.schedules.scratch import scratch_folder
from tvm_tinytrain.schedules.tune import Measure, Search, UntunableError, tune_kernel
from tvm_tinytrain.targets.boards import Board
from tvm_tinytrain.targets.target import Target

Found = Record | UntunableError | None
"""A kernel's record, or why it has none; None for a kernel without knobs."""


@dataclass(frozen=True)
class Job:
    """What is the same for all kernels: where candidates run, what they are scheduled for, how to search, the journals' folder, and
    where a real board is."""

    board: Board
    target: Target
    trials: int
    seed: int
    unit: str
    folder: Path
    port: str | None = None

    def run(self, func: tirx.PrimFunc, measure: Measure, decided: Callable[[int], None]) -> Found:
        """Tunes one kernel; ArchiveError where what is built on the way cannot be written."""
        search = Search(self.trials, self.seed, self.unit, decided)
        try:
            return tune_kernel(func, self.target.to_tvm(), measure, self.folder, search)
        except UntunableError as error:
            return error
        except OSError as error:
            hint = "make room, or choose another folder; what was measured is kept"
            raise ArchiveError(
                "tune", str(self.folder), error, "a folder that can be written", hint
            ) from error

    def measure(self, func: tirx.PrimFunc, images: Path) -> Measure:
        """Measures a kernel's candidates on the board; ``images``: where they are built."""
        return BoardMeasure(func, self.board, self.seed, port=self.port, folder=images)


def tune_in_processes(
    kernels: Sequence[tirx.PrimFunc], job: Job, processes: int, decided: Callable[[int, int], None]
) -> Iterator[tuple[int, Found]]:
    """(index of the kernel, what was found) for all kernels, as they are finished.

    ``decided(index, trials)`` is called in this process whenever a batch of candidates of a kernel is decided.
    """
    waiting = list(enumerate(kernels))[::-1]
    count = min(processes, len(waiting))
    workers = [_Worker(job) for _ in range(count)]
    by_pipe: dict[Any, _Worker] = {w.pipe: w for w in workers}
    try:
        for worker in workers:
            worker.give(*waiting.pop())
        while by_pipe:
            for pipe in wait(list(by_pipe)):
                worker = by_pipe[pipe]
                index, answer = worker.receive()
                if isinstance(answer, int):
                    decided(index, answer)
                    continue
                yield index, answer
                if waiting:
                    worker.give(*waiting.pop())
                else:
                    worker.finish()
                    del by_pipe[pipe]
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that tunes one kernel after the other."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")  # TVM has threads, which a fork would lose
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, job), daemon=True)
        with ctrl_c_waits():  # it ends with this process, which tells of it
            self.process.start()
        other.close()
        self.index = -1

    def give(self, index: int, func: tirx.PrimFunc) -> None:
        self.index = index
        self.pipe.send(tvm.ir.save_json(func))

    def receive(self) -> tuple[int, int | Found]:
        """Candidates decided so far, or what was found; raises what the process raised."""
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            hint = "see what ended it, e.g. too little memory; the same command goes on where it was"
            found = f"exit code {self.process.exitcode}"
            raise TransportError("tune", "a process that tunes", found, "one that lives", hint) from error
        if isinstance(answer, TinyTrainError) and not isinstance(answer, UntunableError):
            raise answer
        return self.index, answer

    def finish(self) -> None:
        """Lets the process end by itself, which removes its folder."""
        self.pipe.send(None)
        self.process.join()

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, job: Job) -> None:
    """Runs in the process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with scratch_folder(job.folder) as images:
        while (text := pipe.recv()) is not None:
            try:
                func = tvm.ir.load_json(text)
                found = job.run(func, job.measure(func, images), pipe.send)
                pipe.send(_plain(found) if isinstance(found, UntunableError) else found)
            except TinyTrainError as error:
                pipe.send(_plain(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _plain(error: TinyTrainError) -> TinyTrainError:
    """The same error, of texts only."""
    return type(error)(error.stage, error.thing, str(error.found), str(error.allowed), error.hint)
