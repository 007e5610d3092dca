"""The processes of an evaluation: Ctrl-C, and processes that are lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fewshot.small import SIZE, digits, small_backbone
from tvm_tinytrain.errors import TransportError
from tvm_tinytrain.fewshot.datasets import from_arrays
from tvm_tinytrain.fewshot.episodes import FixedWays
from tvm_tinytrain.fewshot.evaluate import Contest, _Workers, evaluate
from tvm_tinytrain.fewshot.methods import build_methods
from tvm_tinytrain.fewshot.results import Results
from tvm_tinytrain.fewshot.tasks import AdaptOptions
from tvm_tinytrain.micro.in_process import InProcess

NOTHING = Contest("nothing", (), (), (), 0, AdaptOptions())
PARENT = """
import signal
from tests.fewshot import test_workers as t
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
if __name__ == "__main__":
    with t._Workers(t.NOTHING, t.no_library, 2) as workers:
        for pid in workers.each(t.who, [(0,), (1,)]):
            print(pid, flush=True)
        list(workers.each(t.sleep, [(60,)] * 4))
"""


def no_library(_: object) -> Any:
    raise AssertionError("no method, no library")


def who(_: object, seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def sleep(_: object, seconds: float) -> None:
    time.sleep(seconds)


def die(_: object, number: int) -> None:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _ended(pids: list[int], seconds: float) -> bool:
    """Whether none of them runs; zombies, which wait for whoever inherited them, do not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        states = [Path(f"/proc/{pid}/stat") for pid in pids]
        if not any(s.exists() and s.read_text().rsplit(")", 1)[1].split()[0] != "Z" for s in states):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_workers_end_with_the_process_that_began_them(number: signal.Signals, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
    )  # fmt: skip
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    process.send_signal(number)
    process.wait(timeout=20)
    assert _ended(pids, 10)


def test_a_lost_worker_is_an_error_that_says_so() -> None:
    start = time.monotonic()
    with pytest.raises(TransportError, match="goes on where it was"), _Workers(NOTHING, no_library, 2) as w:
        list(w.each(die, [(0,), (1,), (0,)]))
    assert time.monotonic() - start < 40  # the others sleep for a minute


@pytest.mark.host_compiler
def test_an_interrupted_task_is_no_result(tmp_path: Path) -> None:
    images, labels = digits()
    data = from_arrays(images[::10], labels[::10], name="digits")
    methods = build_methods(small_backbone(), (torch.zeros(1, 3, SIZE, SIZE),), ("lastlayer",))
    options = AdaptOptions(iterations=4, rates=(1e-3,))
    contest = Contest("small", methods, (data,), (FixedWays(3, 2, 2),), 3, options)
    path, calls = tmp_path / "state.json", 0

    class Interrupted(InProcess):
        def call(self, entry: str) -> None:
            nonlocal calls
            calls += entry == "apply"
            if calls == 6 and entry == "apply":
                raise KeyboardInterrupt
            super().call(entry)

    with pytest.raises(KeyboardInterrupt):
        evaluate(contest, Interrupted, path=path)
    assert [r.episode for r in Results.load(path, contest.describe()).records] == [0]
    whole = evaluate(contest, InProcess, path=path)
    assert [len(r.outcome.losses) for r in whole.records] == [4, 4, 4]
