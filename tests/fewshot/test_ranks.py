"""An evaluation over ranks, as torchrun starts them: the same records, a rank that is lost, a run that goes on."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fewshot.small import SIZE, digits, small_backbone
from tvm_tinytrain.errors import ArchiveError, TransportError
from tvm_tinytrain.fewshot import ranks as ranks_module
from tvm_tinytrain.fewshot.datasets import from_arrays
from tvm_tinytrain.fewshot.episodes import FixedWays
from tvm_tinytrain.fewshot.evaluate import Contest, evaluate
from tvm_tinytrain.fewshot.methods import build_methods
from tvm_tinytrain.fewshot.ranks import Ranks
from tvm_tinytrain.fewshot.results import Record, Results
from tvm_tinytrain.fewshot.tasks import AdaptOptions, Outcome
from tvm_tinytrain.micro.in_process import InProcess

WORLD = 2


@pytest.fixture(scope="module")
def contest() -> Contest:
    """Six tasks: two samplers on one domain, so that ranks' shares do not lie one behind the other in the table."""
    images, labels = digits()
    data = from_arrays(images[::10], labels[::10], name="MNIST-500")
    methods = build_methods(small_backbone(), (torch.zeros(1, 3, SIZE, SIZE),), ("none", "lastlayer"))
    samplers = (FixedWays(3, 2, 5), FixedWays(2, 2, 5))
    return Contest(
        "small", methods, (data,), samplers, 3,
        AdaptOptions(iterations=2, rates=(1e-4, 1e-2), tuning_iterations=1, held_out_copies=1),
    )  # fmt: skip


def _die(at: int, done: int, jobs: int) -> None:
    if os.environ["RANK"] == "1" and done == at:
        os.kill(os.getpid(), signal.SIGKILL)


def _rank(contest: Contest, load: Any, path: Path, progress: Any, rank: int, port: int, answers: Any) -> None:
    given = {"RANK": rank, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in given.items()})
    try:
        answers.put((rank, evaluate(contest, load, path=path, progress=progress).records))
    except TransportError as error:
        answers.put((rank, str(error)))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_ranks(
    contest: Contest, load: Any, path: Path, progress: Any = None
) -> tuple[dict[int, Any], list[int | None]]:
    """(what each rank that lived answered, exit codes)."""
    port = free_port()
    context = get_context("spawn")
    answers = context.Queue()
    ranks = [
        context.Process(target=_rank, args=(contest, load, path, progress, r, port, answers))
        for r in range(WORLD)
    ]
    for process in ranks:
        process.start()
    said = dict(answers.get(timeout=300) for _ in range(WORLD if progress is None else WORLD - 1))
    for process in ranks:
        process.join()
    return said, [process.exitcode for process in ranks]


def plain(records: list[Record]) -> list[Record]:
    return [replace(r, outcome=replace(r.outcome, seconds=0.0)) for r in records]


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    ("at", "held_out", "records"), [(1, (3, 1), (0, 0)), (4, (6, 6), (6, 2))], ids=["choosing", "adapting"]
)
def test_a_killed_rank_ends_the_run_and_the_next_one_goes_on(
    contest: Contest, tmp_path: Path, at: int, held_out: tuple[int, int], records: tuple[int, int]
) -> None:
    """Of each rank's six pieces of work the first three choose rates; then every rank knows what all found."""
    path, load = tmp_path / "state.json", partial(InProcess, build_dir=tmp_path)
    alone = evaluate(contest, load)
    said, codes = run_ranks(contest, load, path, partial(_die, at))
    assert codes == [0, -signal.SIGKILL] and not path.exists()
    assert "evaluate" in said[0] and "all 2 ranks until the end" in said[0] and "--state" in said[0]
    kept = [Results.load(tmp_path / f"state.json.rank{r}", contest.describe()) for r in range(WORLD)]
    assert tuple(len(k.held_out) for k in kept) == held_out
    assert tuple(len(k.records) for k in kept) == records
    said, codes = run_ranks(contest, load, path)
    assert codes == [0, 0] and plain(said[0]) == plain(alone.records)
    whole = Results.load(path, contest.describe())
    assert plain(whole.records) == plain(alone.records) and list(tmp_path.glob("state.json.*")) == []
    ran: list[int] = []
    assert evaluate(contest, load, path=path, progress=lambda done, _: ran.append(done)).records == said[0]
    assert not ran


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: found abc; allowed 1 or more"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: found 0; allowed 1 or more"),
        ({"WORLD_SIZE": "2"}, "RANK: found nothing; allowed a number, 0 … 1"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: found 2; allowed a number, 0 … 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK: found -1; "),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT: found nothing; allowed a number, 0 … 65535"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "70000"}, "MASTER_PORT: found 70000; "),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR: found nothing; "),
    ],
)
def test_an_environment_that_is_no_ranks(environment: pytest.MonkeyPatch, given: Any, says: str) -> None:
    for name, value in given.items():
        environment.setenv(name, value)
    with pytest.raises(TransportError) as caught, Ranks.joined():
        pass
    assert f"evaluate: {says}" in str(caught.value) and "torchrun" in str(caught.value)


def test_a_rank_of_one_is_the_first(environment: pytest.MonkeyPatch) -> None:
    """Other programs set RANK too; rank 0 is the one that prints."""
    environment.setenv("RANK", "1")
    with Ranks.joined() as ranks:
        assert ranks == Ranks(0, 1)


@pytest.mark.parametrize("agents_store", ["False", "True"], ids=["alone", "torchrun"])
def test_a_rank_that_never_comes_is_not_waited_for(
    environment: pytest.MonkeyPatch, agents_store: str
) -> None:
    """torchrun's store answers before any rank is there."""
    port = free_port()
    environment.setattr(ranks_module, "_MEETING", timedelta(seconds=1))
    given = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**given, "TORCHELASTIC_USE_AGENT_STORE": agents_store}.items():
        environment.setenv(name, str(value))
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True) if agents_store == "True" else None
    with pytest.raises(TransportError, match=r"rank 0: .*allowed all 2 ranks within 0:00:01"), Ranks.joined():
        pass
    del store


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One that says nothing of ranks."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def record(episode: int) -> Record:
    outcome = Outcome("none", 0.5, 0.0, (), {}, 1, 0, 0, 0.0)
    return Record("small", "MNIST-500", "fixed", episode, 3, 6, "domain", outcome)


def test_every_job_is_some_ranks_whatever_is_finished(tmp_path: Path) -> None:
    path, jobs = tmp_path / "state.json", list(range(7))
    shares = [Ranks(r, 3).share(jobs) for r in range(3)]
    assert sorted(j for share in shares for j in share) == jobs
    Results({"seed": 1}, [record(0), record(3)]).save(Ranks(0, 3).own_file(path))
    Results({"seed": 1}, [record(1)]).save(Ranks(1, 3).own_file(path))
    (tmp_path / "state.json.rank2.part").write_text("torn")
    Results({"seed": 1}, [record(0), record(5)]).save(path)
    for ranks in (Ranks(), Ranks(0, 2), Ranks(1, 3)):  # also where there are others now
        assert [r.episode for r in ranks.load(path, {"seed": 1}).records] == [0, 5, 3, 1]
    with pytest.raises(ArchiveError, match="other seed"):
        Ranks(0, 2).load(path, {"seed": 2})


def test_ranks_of_other_options_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather_object(given: Any, parts: list[Any]) -> None:
        parts[:] = [given, ({"seed": 4, "network": "small"}, [record(1)])]

    monkeypatch.setattr(torch.distributed, "gather_object", gather_object)
    results = Results({"seed": 0, "network": "small"}, [record(0)])
    with pytest.raises(ArchiveError, match=r"rank 1.*other seed.*rank 0's options"):
        Ranks(0, 2).gather(results)


@pytest.mark.parametrize("name", ["new[1].json", "a*.json", "q?.json", "plain.json"])
def test_files_of_ranks_with_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for rank in (0, 12):
        Results({"seed": 1}, [record(rank)]).save(Ranks(rank, 13).own_file(path))
    others = [f"{name}.rank1.bak", f"{name}.rank1.part", f"{name}.ranking", f"b{name}.rank0", "ab.json.rank0"]
    for other in others:
        (tmp_path / other).write_text("mine")
    assert [r.episode for r in Ranks().load(path, {"seed": 1}).records] == [0, 12]
    Ranks().finish(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)
