"""The evaluation on digits: every method on the same tasks, costs, resumption, tables."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import tvm_tinytrain as tt
from tests.fewshot.small import SIZE, digits, small_backbone
from tvm_tinytrain.errors import ArchiveError, PlanError
from tvm_tinytrain.fewshot.datasets import from_arrays
from tvm_tinytrain.fewshot.episodes import FixedWays
from tvm_tinytrain.fewshot.evaluate import Contest, evaluate
from tvm_tinytrain.fewshot.methods import Method, build_methods
from tvm_tinytrain.fewshot.results import Results, as_csv, as_text, interval
from tvm_tinytrain.fewshot.tasks import AdaptOptions
from tvm_tinytrain.micro.in_process import InProcess

pytestmark = pytest.mark.host_compiler
NAMES = ("none", "lastlayer", "tinytrain", "exact")


@pytest.fixture(scope="module")
def methods() -> tuple[Method, ...]:
    return build_methods(
        small_backbone(), (torch.zeros(1, 3, SIZE, SIZE),), NAMES,
        budget=tt.Budget("64KB", 0.2), task_adaptive=tt.TaskAdaptive(candidates=7),
    )  # fmt: skip


@pytest.fixture(scope="module")
def contest(methods: tuple[Method, ...]) -> Contest:
    images, labels = digits()
    data = from_arrays(images[::10], labels[::10], name="MNIST-500")
    options = AdaptOptions(iterations=8, rates=(0.0, 3e-3), tuning_iterations=4, held_out_copies=1)
    return Contest("small", methods, (data,), (FixedWays(4, 3, 5),), 2, options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


def test_every_method_runs_on_the_same_tasks_and_a_run_goes_on(contest: Contest, folder: Path) -> None:
    load = partial(InProcess, build_dir=folder)
    path = folder / "results.json"
    first = evaluate(replace(contest, episodes=1), load, path=path)
    ran: list[tuple[int, int]] = []
    results = evaluate(contest, load, path=path, progress=lambda done, jobs: ran.append((done, jobs)))
    assert ran == [(1, 1)] and len(results.records) == 2 * len(NAMES)
    assert [r for r in results.records if r.episode == 0] == first.records
    for record in results.records:
        outcome = record.outcome
        assert record.ways == 4 and record.support == 12 and 0.0 <= outcome.accuracy <= 1.0
        trains = outcome.method != "none"
        assert set(outcome.tuning) == ({"0", "0.003"} if trains else set())
        best = min(outcome.tuning, key=lambda k: outcome.tuning[k], default="0")
        assert outcome.rate == float(best)
        assert len(outcome.losses) == (8 if outcome.rate else 0)
        assert (outcome.backward_macs > 0) == bool(outcome.rate)
        if outcome.method in ("tinytrain", "exact") and outcome.rate:
            assert outcome.layers and outcome.memory_bytes <= 64 * 1024
    with pytest.raises(ArchiveError) as caught:
        evaluate(replace(contest, seed=5), load, path=path)
    assert "other seed" in str(caught.value)


def test_costs_of_a_plan_are_what_the_device_selects_with(methods: tuple[Method, ...]) -> None:
    method = next(m for m in methods if m.name == "tinytrain")
    adaptive = method.library.metadata["adaptive"]
    plan = tt.UpdatePlan.from_channels({12: [0, 3]})
    cost = method.cost(plan)
    last = adaptive["candidates"][-1]
    assert cost["memory_bytes"] == adaptive["activation_bytes"][6] + 2 * last["channel_bytes"]
    assert cost["trained_weights"] == 2 * 24
    deeper = method.cost(tt.UpdatePlan.from_channels({6: [0], 12: [0, 3]}))
    assert deeper["backward_macs"] > cost["backward_macs"] >= 2 * last["channel_macs"]
    assert method.cost(None)["backward_macs"] == 0


def test_two_processes_find_the_same(contest: Contest, folder: Path) -> None:
    load = partial(InProcess, build_dir=folder)
    alone = evaluate(contest, load)
    shared = evaluate(contest, load, processes=2)
    plain = [replace(r, outcome=replace(r.outcome, seconds=0.0)) for r in alone.records]
    assert plain == [replace(r, outcome=replace(r.outcome, seconds=0.0)) for r in shared.records]
    rows = alone.rows()
    assert [row.method for row in rows] == list(NAMES) and {row.tasks for row in rows} == {2}
    none = rows[0]
    assert none.gain == 0.0 and none.interval == interval([r.outcome.accuracy for r in alone.records[:2]])
    assert "MNIST-500" in as_text(rows) and len(as_text(rows).splitlines()) == 5
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["method"] for row in read] == list(NAMES)


def test_intervals() -> None:
    assert interval([0.5]) is None
    assert interval([0.0, 1.0]) == pytest.approx(1.96 * 0.5)


def test_unknown_methods_and_damaged_results(tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        build_methods(small_backbone(), (), ["tinytrian"])
    assert "tinytrian" in str(caught.value) and "tinytrain" in str(caught.value)
    with pytest.raises(PlanError) as caught:
        build_methods(small_backbone(), (), ["sparseupdate"])
    assert "no scheme" in str(caught.value)
    path = tmp_path / "results.json"
    path.write_text('{"format": 1}')
    with pytest.raises(ArchiveError):
        Results.load(path, {})
