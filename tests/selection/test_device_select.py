"""The device's selection is the host's, bit for bit, and stays within its scratch."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.selection.device import ARENA_SMALL, BAD_VALUE, BUDGET, CRITERIA, OK, UINT32_MAX, Device
from tests.selection.problems import backbone_costs, random_map
from tests.selection.tables import (
    KINDS,
    cases,
    random_budgets,
    random_potentials,
    random_tables,
    staircase,
)
from tvm_tinytrain.errors import BudgetError
from tvm_tinytrain.selection import (
    Budgets,
    ExactAccounting,
    FisherMap,
    Problem,
    TableAccounting,
    TableCandidate,
    TaskAdaptive,
    exact,
    select,
)
from tvm_tinytrain.selection.problem import Counts

pytestmark = pytest.mark.host_compiler
Case = tuple[TableAccounting, Budgets, FisherMap]
no_reset = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RATIOS = (
    Fraction(1),
    Fraction(1, 2),
    Fraction(1, 4),
    Fraction(1, 3),
    Fraction(7, 1000),
    Fraction(1023, 1024),
)


def options_of(tables: TableAccounting, criterion: str, **more: object) -> TaskAdaptive:
    return TaskAdaptive(criterion, candidates=tables.layers, **more)  # type: ignore[arg-type]


@settings(no_reset, max_examples=400)
@given(
    cases(),
    st.sampled_from(CRITERIA),
    st.sampled_from(RATIOS),
    st.sampled_from(["skip", "stop"]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 7),
)
def test_any_tables(
    device: Device, case: Case, criterion: str, ratio: Fraction, overflow: str, seed: int, skew: int
) -> None:
    tables, budgets, fisher = case
    options = options_of(tables, criterion, channel_ratio=ratio, overflow=overflow, seed=seed)
    device.same(tables, budgets, None if criterion == "random" else fisher, options, skew=skew)


@settings(no_reset, max_examples=300)
@given(cases(candidates=9, channels=9), st.sampled_from(RATIOS))
def test_exact_on_any_tables(device: Device, case: Case, ratio: Fraction) -> None:
    tables, budgets, fisher = case
    device.same(tables, budgets, fisher, options_of(tables, "exact", channel_ratio=ratio))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "channels"), [(1, 40), (4, 3), (12, 60), (18, 200), (64, 50)])
def test_tables_like_a_networks(device: Device, kind: str, count: int, channels: int) -> None:
    """All criteria on 11 tables each: 330 tables in all, the largest with 64 candidates."""
    rng = np.random.default_rng([count, channels, KINDS.index(kind)])
    for _ in range(11):
        tables = random_tables(rng, count, channels)
        fisher, budgets = random_potentials(rng, tables, kind), random_budgets(rng, tables)
        for criterion in CRITERIA:
            options = options_of(tables, criterion, seed=int(rng.integers(1 << 62)))
            host = device.same(tables, budgets, None if criterion == "random" else fisher, options)
            assert budgets.memory_bytes is None or host.memory_bytes <= budgets.memory_bytes
            assert budgets.macs is None or host.macs <= budgets.macs


def test_channels_that_are_given_back(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = []
    drop = exact._drop

    def counted(problem: Problem, counts: Counts, d: int, price: list[int]) -> Counts:
        given_back.append((counts, drop(problem, counts, d, price)))
        return given_back[-1][1]

    monkeypatch.setattr(exact, "_drop", counted)
    for seed in range(150):
        tables, budgets, fisher = staircase(np.random.default_rng(seed))
        device.same(tables, budgets, fisher, options_of(tables, "exact"))
    assert sum(before != after for before, after in given_back) >= 100


@pytest.mark.parametrize("name", ["mcunet", "mobilenet_v2", "proxyless_nas"])
def test_backbones(device: Device, name: str) -> None:
    network = backbone_costs(name)
    accounting = ExactAccounting(network)
    tables = TableAccounting.from_costs(accounting, network.last(18))
    budgets = Budgets(tables.memory_bytes({}) + 16 * 17_400, tables.full_macs * 15 // 100)
    for seed in range(5):
        fisher = random_map(network, tables.layers, seed)
        exact = device.same(tables, budgets, fisher, options_of(tables, "exact"))
        assert (
            exact.captured >= device.same(tables, budgets, fisher, options_of(tables, "tinytrain")).captured
        )


@settings(no_reset, max_examples=150)
@given(cases(candidates=5, channels=4), st.integers(0, 700))
def test_exhaustive_limit(device: Device, case: Case, limit: int) -> None:
    """A search is complete, and says so, up to the limit and not beyond it; never worse for it."""
    tables, budgets, fisher = case
    potentials = [fisher[layer] for layer in tables.layers]
    options = options_of(tables, "exact")
    answer = device.select(tables, budgets, potentials, options, exhaustive_limit=limit)
    complete = device.select(tables, budgets, potentials, options, exhaustive_limit=UINT32_MAX)
    assert complete.proven and complete.captured >= answer.captured
    vectors = int(np.prod([np.count_nonzero(_quantised(fisher)[i]) + 1 for i in tables.layers]))
    assert answer.proven == (vectors <= limit)


def _quantised(fisher: FisherMap) -> dict[int, np.ndarray]:
    from tvm_tinytrain.selection.integers import quantise

    return dict(quantise(fisher.layers))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, -1.0, -1e-45, -3e38])
@pytest.mark.parametrize("at", [0, 4, 9])
@pytest.mark.parametrize("criterion", ["tinytrain", "l2", "exact"])
def test_bad_potentials(device: Device, bad: float, at: int, criterion: str) -> None:
    tables = random_tables(np.random.default_rng(0), 1, 1)
    tables = TableAccounting(
        tuple(TableCandidate(i, 5, 10, 100, 8, 20) for i in range(2)), (9, 9, 9), (), tables.full_macs
    )
    values = np.ones(10, np.float32)
    values[at] = bad
    answer = device.select(tables, Budgets(), [values], options_of(tables, criterion))
    assert answer.status == BAD_VALUE and answer.untouched
    assert device.select(tables, Budgets(), [np.ones(10)], options_of(tables, criterion)).status == OK


@settings(no_reset, max_examples=60)
@given(cases(), st.sampled_from(CRITERIA))
def test_frozen_network_does_not_fit(device: Device, case: Case, criterion: str) -> None:
    tables, _, fisher = case
    frozen = tables.memory_bytes({})
    if frozen == 0:
        return
    budgets = Budgets(frozen - 1)
    answer = device.select(tables, budgets, [fisher[i] for i in tables.layers], options_of(tables, criterion))
    assert answer.status == BUDGET and answer.untouched
    with pytest.raises(BudgetError, match=f"allowed {frozen} or more"):
        select(tables, budgets, None if criterion == "random" else fisher, options_of(tables, criterion))


@pytest.mark.parametrize(
    "wrong",
    [
        {"criterion": 7},
        {"criterion": 255},
        {"overflow": 2},
        {"numerator": 0},
        {"numerator": 5, "denominator": 4},
        {"denominator": 0},
        {"none": 1},
    ],
)
def test_bad_options(device: Device, wrong: dict[str, int]) -> None:
    wrong = dict(wrong)
    tables = TableAccounting((TableCandidate(0, 3, 1, 1, 1, 1),), (0, 0), (), 1)
    given_potentials = [] if wrong.pop("none", 0) else [np.ones(3)]
    answer = device.select(tables, Budgets(), given_potentials, **wrong)
    assert answer.status == BAD_VALUE and answer.untouched


def test_scratch_too_small(device: Device) -> None:
    tables = TableAccounting((TableCandidate(0, 3, 1, 1, 1, 1),), (0, 0), (), 1)
    answer = device.select(tables, Budgets(), [np.ones(3)], missing_scratch=1)
    assert answer.status == ARENA_SMALL and answer.untouched


def test_too_many_candidates(device: Device) -> None:
    for count, status in ((64, OK), (65, BAD_VALUE)):
        candidates = tuple(TableCandidate(i, 1, 1, 1, 1, 1) for i in range(count))
        tables = SimpleNamespace(candidates=candidates, links=(), activation_bytes=(0,) * (count + 1))
        assert device.select(tables, Budgets(), [np.ones(count)]).status == status  # type: ignore[arg-type]


def test_costs_beyond_32_bits(device: Device) -> None:
    """MACs add up in 64 bits; a budget above 2^62 is none."""
    most = (1 << 32) - 1
    tables = TableAccounting(
        tuple(TableCandidate(i, 300, most, most, 5, most) for i in range(5)), (10,) * 6, (), 1 << 50
    )
    fisher = random_potentials(np.random.default_rng(1), tables, "spread")
    for macs in (None, (1 << 62) - 1, 700 * most, 700 * most - 1):
        for criterion in ("tinytrain", "exact"):
            device.same(tables, Budgets(3000, macs), fisher, options_of(tables, criterion))
    answer = device.select(
        tables, Budgets(None, None), [fisher[i] for i in tables.layers], macs_high=1 << 30, macs_low=0
    )
    assert answer.status == OK and answer.captured > 0
