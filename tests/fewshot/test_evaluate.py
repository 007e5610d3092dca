"""The evaluation on digits: every method on the same tasks, costs, resumption, tables."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.fewshot.small import SIZE, digits, small_backbone
from tvm_tinytrain.adaptation import DiffAugment
from tvm_tinytrain.errors import ArchiveError, PlanError
from tvm_tinytrain.fewshot.datasets import Dataset, from_arrays
from tvm_tinytrain.fewshot.episodes import FixedWays, sample_episode
from tvm_tinytrain.fewshot.evaluate import Contest, _choose, evaluate
from tvm_tinytrain.fewshot.methods import Method, build_methods
from tvm_tinytrain.fewshot.results import HeldOut, Results, as_csv, as_text, interval
from tvm_tinytrain.fewshot.tasks import RATE_BY, AdaptOptions, _Task, best_rate
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
    options = AdaptOptions(
        iterations=8, rates=(0.0, 3e-3), tuning_iterations=4, held_out_copies=1, rate_by=RATE_BY
    )
    return Contest("small", methods, (data,), (FixedWays(4, 3, 5),), 2, options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.mark.parametrize("beside", ["fulltrain", "tinytrain"])
def test_prediction_alone_costs_the_same_whatever_stands_beside_it(
    methods: tuple[Method, ...], beside: str
) -> None:
    alone, _ = build_methods(small_backbone(), (torch.zeros(1, 3, SIZE, SIZE),), ("none", beside))
    assert alone.cost(None) == methods[0].cost(None)


def test_every_method_runs_on_the_same_tasks_and_a_run_goes_on(contest: Contest, folder: Path) -> None:
    load = partial(InProcess, build_dir=folder)
    path = folder / "results.json"
    first = evaluate(replace(contest, episodes=1), load, path=path)
    ran: list[int] = []
    results = evaluate(contest, load, path=path, progress=lambda done, _: ran.append(done))
    assert ran[:2] == [1, 2] and len(results.records) == 2 * len(RATE_BY) * len(NAMES)
    tuned = {h.episode: h.losses for h in results.held_out}
    assert [h for h in results.held_out if h.episode == 0] == first.held_out
    by_task = [r for r in results.records if r.rate_by == "task"]
    assert [r for r in by_task if r.episode == 0] == [r for r in first.records if r.rate_by == "task"]
    for record in results.records:
        outcome = record.outcome
        assert record.ways == 4 and record.support == 12 and 0.0 <= outcome.accuracy <= 1.0
        if outcome.method == "none":
            assert "none" not in tuned[0] and outcome.rate == 0.0
        else:
            asked = [0, 1] if record.rate_by == "domain" else [record.episode]
            losses = [tuned[e][outcome.method] for e in asked]
            assert all(set(found) == {"0", "0.003"} for found in losses)
            summed = {rate: sum(found[rate] for found in losses) for rate in losses[0]}
            assert outcome.rate == float(min(summed, key=lambda rate: summed[rate]))
        assert len(outcome.losses) == (8 if outcome.rate else 0)
        assert (outcome.backward_macs > 0) == bool(outcome.rate)
        if outcome.method in ("tinytrain", "exact") and outcome.rate:
            assert outcome.layers and outcome.memory_bytes <= 64 * 1024
    with pytest.raises(ArchiveError) as caught:
        evaluate(replace(contest, seed=5), load, path=path)
    assert "other seed" in str(caught.value)


def test_records_at_a_rate_that_is_no_longer_chosen_are_made_again(contest: Contest, folder: Path) -> None:
    """A domain's rate may change when tasks are added."""
    load, path = partial(InProcess, build_dir=folder), folder / "stale.json"
    whole = evaluate(contest, load)
    wrong = [
        replace(r, outcome=replace(r.outcome, rate=0.5, accuracy=0.125)) if r.outcome.method == "exact" else r
        for r in whole.records
    ]
    Results(contest.describe(), wrong, whole.held_out).save(path)
    ran: list[tuple[int, int]] = []
    again = evaluate(contest, load, path=path, progress=lambda *at: ran.append(at))
    assert ran == [(1, 2), (2, 2)]
    assert [(r.key, r.outcome.accuracy) for r in again.records] == [
        (r.key, r.outcome.accuracy) for r in whole.records
    ]


def test_rate_of_least_mean_loss_the_smallest_of_equals() -> None:
    rates = (0.0, 1e-3, 1e-2)
    losses = [{"0": 1.0, "0.001": 0.5, "0.01": 0.1}, {"0": 1.0, "0.001": 0.5, "0.01": 2.0}, {}]
    assert best_rate(rates, losses) == 1e-3
    assert best_rate(rates, losses[:1]) == 1e-2
    assert best_rate(rates, [{"0": 1.0, "0.001": 1.0, "0.01": 1.0}]) == 0.0
    assert best_rate((1e-2, 0.0), [{}, {}]) is None and best_rate((1e-3,), []) == 1e-3
    with pytest.raises(PlanError, match="rate_by"):
        AdaptOptions(rate_by=("day",))


def test_costs_of_a_plan_are_what_the_device_selects_with(methods: tuple[Method, ...]) -> None:
    method = next(m for m in methods if m.name == "tinytrain")
    adaptive = method.library.metadata["adaptive"]
    plan = tt.UpdatePlan.from_channels({12: [0, 3]})
    cost = method.cost(plan)
    last = adaptive["candidates"][-1]
    peaks = {e: m["peak_bytes"] for e, m in method.library.metadata["memory"]["entries"].items()}
    assert (
        adaptive["activation_bytes"][6] + 2 * last["channel_bytes"] < peaks["fisher"] == cost["memory_bytes"]
    )
    many = method.cost(tt.UpdatePlan.from_channels({6: range(32), 7: range(32)}))["memory_bytes"]
    assert many > peaks["fisher"]
    untrained = replace(method, trains=False).cost(None)
    assert peaks["predict"] - 16 <= untrained["memory_bytes"] <= peaks["predict"] < peaks["fisher"]
    assert cost["trained_weights"] == 2 * 24
    deeper = method.cost(tt.UpdatePlan.from_channels({6: [0], 12: [0, 3]}))
    assert deeper["backward_macs"] > cost["backward_macs"] >= 2 * last["channel_macs"]
    assert method.cost(None)["backward_macs"] == 0


def test_two_processes_find_the_same(contest: Contest, folder: Path) -> None:
    load = partial(InProcess, build_dir=folder)
    alone = evaluate(contest, load)
    shared = evaluate(contest, load, processes=2)
    plain = [replace(r, outcome=replace(r.outcome, seconds=0.0)) for r in alone.records]
    assert sorted(h.episode for h in shared.held_out) == [0, 1]
    assert plain == [replace(r, outcome=replace(r.outcome, seconds=0.0)) for r in shared.records]
    rows = alone.rows()
    assert [row.method for row in rows] == 2 * list(NAMES) and {row.tasks for row in rows} == {2}
    assert [row.rate_by for row in rows] == [by for by in RATE_BY for _ in NAMES]
    none = rows[0]
    assert none.gain == 0.0 and none.interval == interval([r.outcome.accuracy for r in alone.records[:2]])
    assert "MNIST-500" in as_text(rows) and len(as_text(rows).splitlines()) == 9
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [row["method"] for row in read] == 2 * list(NAMES)


def test_random_draws_other_channels_for_every_task(contest: Contest, folder: Path) -> None:
    method = replace(next(m for m in contest.methods if m.name == "exact"), name="random", criterion="random")
    support, labels = sample_episode(contest.datasets[0], contest.samplers[0], 0, 0).support_set()
    options = replace(contest.options, iterations=1)
    with InProcess(method.library, build_dir=folder) as library:
        tasks = [_Task(library, method, support, labels, options, seed) for seed in (0, 1, 1 << 40, 0)]
        plans = [task.adapt(1e-3).plan for task in tasks]
    assert len(set(plans)) == 3 and plans[0] == plans[3]


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


RECORD = {
    "network": "small", "domain": "birds", "sampler": "5-way", "episode": 0, "ways": 5, "support": 25, "rate_by": "domain",
    "outcome": {
        "method": "exact", "accuracy": 0.5, "rate": 1e-3, "losses": [1.5, None], "layers": {"3": 4}, "memory_bytes": 9,
        "backward_macs": 8, "trained_weights": 7, "seconds": 0.1,
    },
}  # fmt: skip
HELD_OUT = {
    "network": "small", "domain": "birds", "sampler": "5-way", "episode": 0,
    "losses": {"exact": {"0": 1.5, "0.001": None}}, "fits_nothing": ["exact"],
}  # fmt: skip
NAMED = {
    "network": "small", "datasets": {"birds": []}, "samplers": {"5-way": {}}, "libraries": {"exact": "5e"},
    "adapt": {"rate_by": ["domain"], "rates": [0.0, 1e-3]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "key", "value", "says"),
    [
        ("records", "domain", None, "records 0: domain None"),
        ("records", "episode", -1, "episode -1"),
        ("records", "ways", "5", "ways '5'"),
        ("records", "outcome", [], r"outcome: \[\]"),
        ("records", "outcome.accuracy", 1.5, "outcome: accuracy 1.5"),
        ("records", "outcome.accuracy", math.nan, "accuracy nan"),
        ("records", "outcome.memory_bytes", -1, "memory_bytes -1"),
        ("records", "outcome.losses", ["x"], "losses"),
        ("records", "outcome.seconds", None, "seconds None"),
        ("held_out", "losses", {"exact": {"0": "x"}}, "held_out 0: losses"),
        ("held_out", "losses", {"exact": {"0": 1.0}}, "losses at 0; allowed 0, 0.001"),
        ("held_out", "losses", {"other": {}}, "method other; allowed exact"),
        ("held_out", "fits_nothing", "exact", "fits_nothing"),
        ("held_out", "sampler", "6-way", "sampler 6-way; allowed 5-way"),
        ("records", "network", "large", "network large; allowed small"),
        ("records", "domain", "signs", "domain signs; allowed birds"),
        ("records", "rate_by", "task", "choice of the rate by task; allowed domain"),
        ("records", "outcome.method", "none", "method none; allowed exact"),
    ],
)
def test_values_of_a_state_that_cannot_be(
    tmp_path: Path, kind: str, key: str, value: object, says: str
) -> None:
    path, whole = (
        tmp_path / "state.json",
        {"format": 2, "options": NAMED, "records": [RECORD], "held_out": [HELD_OUT]},
    )
    path.write_text(json.dumps(whole))
    assert len(Results.load(path, NAMED).records) == 1
    damaged = json.loads(path.read_text())
    *outer, last = key.split(".")
    place = damaged[kind][0]
    for name in outer:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(damaged))
    with pytest.raises(ArchiveError, match=f"found .*{says}"):
        Results.load(path, NAMED)


def test_a_state_that_cannot_be_written_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    part = tmp_path / "state.json.part"
    Results({"seed": 1}).save(path)
    before = path.read_bytes()

    def full(self: Path, text: str, **_: object) -> int:
        self.write_bytes(text[:5].encode())
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        with pytest.raises(ArchiveError, match=r"state\.json: found .*No space left.*a writable path"):
            Results({"seed": 2}).save(path)
    assert path.read_bytes() == before and not part.exists()
    part.mkdir()
    with pytest.raises(ArchiveError, match=r"state\.json"):
        Results({"seed": 2}).save(path)
    assert path.read_bytes() == before and part.is_dir()


def _data(name: str, first: int = 0) -> Dataset:
    images, labels = digits()
    return from_arrays(images[first::10], labels[first::10], name=name)


@pytest.fixture(scope="module")
def last_layer() -> tuple[Method, ...]:
    return build_methods(small_backbone(), (torch.zeros(1, 3, SIZE, SIZE),), ("lastlayer",))


def _contest(
    methods: tuple[Method, ...], data: Dataset, episodes: int, shots: int = 3, **options: Any
) -> Contest:
    given = AdaptOptions(**{"iterations": 2, "tuning_iterations": 1, "held_out_copies": 0, **options})
    return Contest("small", methods, (data,), (FixedWays(3, shots, 2),), episodes, given)


def test_rows_of_the_same_name_are_refused(last_layer: tuple[Method, ...]) -> None:
    one = _contest(last_layer, _data("digits"), 1)
    for datasets in ((_data("digits"), _data("digits", 5)), (_data(""),)):
        with pytest.raises(PlanError, match="names that differ"):
            replace(one, datasets=datasets)
    with pytest.raises(PlanError, match=r"samplers: .* names that differ"):
        replace(one, samplers=(FixedWays(3, 3, 2), FixedWays(3, 3, 1)))
    with pytest.raises(PlanError, match=r"methods: .* names that differ"):
        replace(one, methods=2 * last_layer)


def test_a_choice_without_a_sample_to_choose_by_is_refused(last_layer: tuple[Method, ...]) -> None:
    with pytest.raises(PlanError, match="more shots"):
        evaluate(_contest(last_layer, _data("digits"), 1, shots=1, rates=(0.0, 1e-3)), InProcess)
    one_rate = evaluate(_contest(last_layer, _data("digits"), 1, shots=1, rates=(1e-3,)), InProcess)
    assert [r.outcome.rate for r in one_rate.records] == [1e-3]


def test_a_task_that_can_spare_no_sample_takes_the_rate_of_its_domain(last_layer: tuple[Method, ...]) -> None:
    contest = _contest(last_layer, _data("digits"), 2, rates=(0.0, 1e-3), rate_by=("task",))
    known = [{"lastlayer": {"0": 1.0, "0.001": 0.5}}, {"lastlayer": {}}]
    held_out = [HeldOut(*contest.task((0, 0, e)), losses) for e, losses in enumerate(known)]
    assert set(_choose(contest, Results({}, [], held_out)).values()) == {1e-3}


def test_a_rate_whose_loss_is_no_number_is_the_worst(last_layer: tuple[Method, ...], tmp_path: Path) -> None:
    for rates in ((1e30, 1e-3), (1e-3, 1e30)):
        path = tmp_path / f"{rates[0]}.json"
        data = _contest(last_layer, _data("digits"), 1, rates=rates, rate_by=RATE_BY)
        found = evaluate(data, InProcess, path=path)
        assert [r.outcome.rate for r in found.records] == [1e-3, 1e-3]
        json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        again = evaluate(data, InProcess, path=path)
        assert again.records == found.records


def test_a_state_of_more_tasks_or_of_other_groups_is_refused(
    last_layer: tuple[Method, ...], tmp_path: Path
) -> None:
    path, data = tmp_path / "state.json", _data("digits")
    evaluate(_contest(last_layer, data, 2, rates=(1e-3,)), InProcess, path=path)
    before = path.read_bytes()
    with pytest.raises(PlanError, match="at most 1"):
        evaluate(_contest(last_layer, data, 1, rates=(1e-3,)), InProcess, path=path)
    grouped = replace(data, groups=tuple(np.arange(len(g)) // 2 for g in data.groups))
    known = _contest(last_layer, data, 2, rates=(1e-3,))
    for other, says in (
        (replace(known, datasets=(grouped,)), "datasets"),
        (replace(known, datasets=(_data("digits", 1),)), "datasets"),
        (replace(known, samplers=(FixedWays(3, 3, 1),)), "samplers"),
        (_contest(last_layer, data, 2, rates=(1e-3,), augment=_noise), "adapt"),
    ):
        with pytest.raises(ArchiveError, match=f"other {says};"):
            evaluate(other, InProcess, path=path)
    assert path.read_bytes() == before


def _noise(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (samples + 0.05 * rng.standard_normal(samples.shape)).astype(np.float32)


def test_a_function_that_augments_stands_in_the_state_by_its_name(
    last_layer: tuple[Method, ...], tmp_path: Path
) -> None:
    path, contest = (
        tmp_path / "state.json",
        _contest(last_layer, _data("digits"), 1, rates=(1e-3,), augment=_noise),
    )
    first = evaluate(contest, InProcess, path=path)
    assert evaluate(contest, InProcess, path=path).records == first.records
    assert json.loads(path.read_text())["options"]["adapt"]["augment"].endswith("test_evaluate._noise")
    with pytest.raises(PlanError, match="augment"):
        _contest(last_layer, _data("digits"), 1, augment=DiffAugment)


def test_what_no_process_can_be_given_or_no_task_can_be_drawn_from_is_found_first(
    last_layer: tuple[Method, ...],
) -> None:
    def nothing(_: object) -> Any:
        raise AssertionError("work began")

    data = _data("digits")
    unknown = replace(data, reader=lambda c, rows: data.load(c, rows))
    for contest, says in (
        (_contest(last_layer, unknown, 2), "data set digits: found"),
        (_contest(last_layer, data, 2, augment=lambda samples, rng: samples), "augment: found"),
        (_contest(last_layer, data, 2), "load: found"),
        (_contest(last_layer, data, 2, shots=50), "digits, 3-way 50-shot: found 0 classes"),
    ):
        with pytest.raises(PlanError, match=says):
            evaluate(contest, nothing, processes=2)


def test_a_budget_that_no_channel_fits_is_told(methods: tuple[Method, ...], tmp_path: Path) -> None:
    adaptive = next(m for m in methods if m.name == "exact")
    tight = build_methods(
        small_backbone(), (torch.zeros(1, 3, SIZE, SIZE),), ("exact",),
        budget=tt.Budget("64KB", 1e-6), task_adaptive=tt.TaskAdaptive(candidates=7),
    )  # fmt: skip
    for given, nothing in (((adaptive,), {}), (tight, {"exact": 1})):
        for rates in ((1e-3,), (0.0, 1e-3)):  # every rate is as good as 0, which is chosen then
            path = tmp_path / f"{len(rates)}{len(nothing)}.json"
            contest = _contest(given, _data("digits"), 1, rates=rates)
            assert evaluate(contest, InProcess, path=path).fits_nothing() == nothing
            assert Results.load(path, contest.describe()).fits_nothing() == nothing
