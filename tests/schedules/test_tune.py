"""The search, with an invented cost: it finds, survives failures, goes on, and decides by its seed."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi
from tvm import tirx

from tests.schedules.kernel_cases import M7, kernels, lower
from tvm_tinytrain.errors import ArchiveError, TransportError
from tvm_tinytrain.schedules import tune
from tvm_tinytrain.schedules.journal import Journal, Outcome
from tvm_tinytrain.schedules.knobs import AskedKnobs, Knobs
from tvm_tinytrain.schedules.records import TUNABLE, Record, tunable_rule
from tvm_tinytrain.schedules.tune import Search, UntunableError, tune_kernel
from tvm_tinytrain.targets.target import parse_target

pytest.importorskip("xgboost")
NAME = "pointwise_primes"
TRIALS = 24


class Invented:
    """A cost from the number of statements, least at 20; where it is a multiple of 12 a candidate fails, except the first one."""

    def __init__(self, failing: bool = True) -> None:
        self.measured = 0
        self.failing = failing

    def __call__(self, found: Mapping[str, tirx.PrimFunc]) -> dict[str, Outcome]:
        outcomes = {}
        for name, func in found.items():
            self.measured += 1
            stores: list[object] = []
            tvm_ffi.structural_walk(func.body, [(tirx.BufferStore, stores.append)])
            fails = self.failing and self.measured > 1 and len(stores) % 12 == 0
            cost = 1.0 + abs(len(stores) - 20)
            outcomes[name] = Outcome(None, "invented fault") if fails else Outcome(cost)
        return outcomes


def tuned(folder: Path, measure: Invented, trials: int = TRIALS, seed: int = 1) -> Record | None:
    return tune_kernel(kernels()[NAME], M7.to_tvm(), measure, folder, Search(trials, seed, "stores"))


@pytest.mark.parametrize("name", ["pointwise_tile_and_rest", "depthwise_odd", "dense_stem_dw"])
def test_a_rule_names_its_knobs(name: str) -> None:
    func, target = kernels()[name], M7.to_tvm()
    found = tunable_rule(func, target)
    assert found is not None and found[1](func, target, Knobs({"columns": 1})) is not None


def test_search_finds_survives_and_goes_on(tmp_path: Path) -> None:
    first = Invented()
    record = tuned(tmp_path, first)
    assert record is not None and record.cost < record.default_cost
    asked = AskedKnobs()
    tunable_rule(kernels()[NAME], M7.to_tvm())[1](kernels()[NAME], M7.to_tvm(), asked)  # type: ignore[index]
    lines = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()]
    assert any(line.get("failure") == "invented fault" for line in lines), "no candidate failed"
    assert first.measured == len(lines) - 2 <= TRIALS + 1 and lines[-1] == {"finished": TRIALS}
    assert all(asked.space.contains(json.loads(line["knobs"])) for line in lines[1:-1])
    again = Invented()
    assert tuned(tmp_path, again) == record
    assert again.measured == 0
    more = Invented()
    tuned(tmp_path, more, trials=TRIALS + 8)
    assert 0 < more.measured <= 8, "more trials than before: it goes on behind the last one"
    # the knobs give the cost that the record says
    rule = dict(TUNABLE)[record.rule]
    low = lower({"k": kernels()[NAME]}, (lambda f, t: rule(f, t, Knobs(record.knobs)),))["k"]
    assert Invented(failing=False)({"k": low})["k"].cost == record.cost


def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """The journal of a search that was killed, its last line half written, is all that the second one has."""
    whole = Invented()
    record = tuned(tmp_path / "whole", whole)
    path = next((tmp_path / "whole").glob("*.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / path.name).write_text("".join(lines[:12]) + lines[12][:15])
    rest = Invented(failing=True)
    rest.measured = 11
    assert tuned(tmp_path / "cut", rest) == record
    assert rest.measured == whole.measured
    assert (tmp_path / "cut" / path.name).read_text() == path.read_text()


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "a.jsonl", {"seed": 1}).add({"rows": 2}, Outcome(3.0))
    with pytest.raises(ArchiveError, match="another folder"):
        Journal(tmp_path / "a.jsonl", {"seed": 2})
    assert Journal(tmp_path / "a.jsonl", {"seed": 1}).best() == ({"rows": 2}, 3.0)


def test_a_journal_of_another_core_is_refused(tmp_path: Path) -> None:
    func, search = kernels()[NAME], Search(1, 1, "stores")
    assert tune_kernel(func, M7.to_tvm(), Invented(), tmp_path, search) is not None
    with pytest.raises(ArchiveError, match=r"another search: found .*cortex-m7.* allowed .*cortex-m55"):
        tune_kernel(
            func, parse_target("c -mcpu=cortex-m55").to_tvm(), Invented(), tmp_path, replace(search, trials=2)
        )


class Unplugged(Invented):
    """A board that goes away after some candidates."""

    def __init__(self, after: int) -> None:
        super().__init__(failing=False)
        self.after = after

    def __call__(self, found: Mapping[str, tirx.PrimFunc]) -> dict[str, Outcome]:
        there = dict(list(found.items())[: self.after - self.measured])
        if not there:
            raise TransportError("connect", "board", "nothing", "an answer", "plug it in")
        return super().__call__(there)


@pytest.mark.parametrize("after", [0, 5, 17])
def test_what_no_candidate_caused_is_no_outcome(tmp_path: Path, after: int) -> None:
    """The search ends with the error as it was raised, and goes on later as if nothing had been."""
    alone = tuned(tmp_path / "alone", Invented(failing=False))
    with pytest.raises(TransportError, match="plug it in"):
        tuned(tmp_path / "cut", Unplugged(after))
    path = next((tmp_path / "cut").glob("*.jsonl"))
    assert len(path.read_text().splitlines()) == 1 + after
    assert tuned(tmp_path / "cut", Invented(failing=False)) == alone
    assert path.read_text() == next((tmp_path / "alone").glob("*.jsonl")).read_text()


class Broken(Invented):
    """Nothing works, as where the disk is full."""

    def __call__(self, found: Mapping[str, tirx.PrimFunc]) -> dict[str, Outcome]:
        return dict.fromkeys(found, Outcome(None, "no room"))


@pytest.mark.parametrize("trials", [1, TRIALS])
def test_where_the_own_choice_fails_nothing_is_decided(tmp_path: Path, trials: int) -> None:
    with pytest.raises(
        UntunableError, match=r"conv2d .*found no room; allowed a right result of the rule's own"
    ):
        tuned(tmp_path, Broken(), trials)
    assert len(next(tmp_path.glob("*.jsonl")).read_text().splitlines()) == 1
    assert tuned(tmp_path, Invented(), trials) is not None


def test_a_space_has_bounds_and_its_own_choice() -> None:
    asked = AskedKnobs()
    assert asked.choose("rows", (1, 2, 4), 4) == 4
    asked.choose("columns", (1, 8), 8)
    asked.choose("unroll", (1, 2), 1)
    asked.product_up_to(("rows", "columns"), 16)
    space = asked.space
    assert space.size(100) == 11 and space.size(3) == 3
    assert {"rows": 4, "columns": 8, "unroll": 1} in list(space.all()), (
        "the rule's own choice is always measured"
    )
    assert not space.contains({"rows": 4, "columns": 8, "unroll": 2})
    assert space.contains({"rows": 2, "columns": 8, "unroll": 2})


def test_a_small_space_is_measured_whole(tmp_path: Path) -> None:
    """Without a search: as many candidates as there are, and the best of them all."""
    func = kernels()["depthwise_smaller_than_the_window"]
    found = tunable_rule(func, M7.to_tvm())
    asked = AskedKnobs()
    assert found is not None and found[1](func, M7.to_tvm(), asked) is not None
    count = asked.space.size(1000)
    measure = Invented(failing=False)
    record = tune_kernel(func, M7.to_tvm(), measure, tmp_path, Search(count, 1, "stores"))
    assert record is not None and measure.measured == count > 16
    journal = [json.loads(line) for line in next(tmp_path.glob("*.jsonl")).read_text().splitlines()[1:-1]]
    assert len(journal) == count and record.cost == min(line["cost"] for line in journal)


def test_a_kernel_without_knobs_is_left_alone(tmp_path: Path) -> None:
    assert tunable_rule(kernels()["clip"], M7.to_tvm()) is None
    search = Search(4, 0, "stores")
    assert tune_kernel(kernels()["clip"], M7.to_tvm(), Invented(), tmp_path, search) is None


@pytest.mark.parametrize("at", [1, 9])
def test_ctrl_c_is_no_candidates_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """It comes while a candidate is lowered, below C++, which makes a RuntimeError of it that looks like the candidate's."""
    alone, calls = tuned(tmp_path / "alone", Invented()), 0
    lower_kernel = tune.lower_kernel

    def interrupted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise RuntimeError from None
        return lower_kernel(*given)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(tune, "lower_kernel", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuned(tmp_path / "cut", Invented())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "as it was before the search"
    finally:
        signal.signal(signal.SIGINT, before)
    rest = Invented()
    rest.measured = len(next((tmp_path / "cut").glob("*.jsonl")).read_text().splitlines()) - 1
    assert tuned(tmp_path / "cut", rest) == alone
    journals = [next((tmp_path / name).glob("*.jsonl")).read_text() for name in ("cut", "alone")]
    assert journals[0] == journals[1]
