"""The criterion "exact" against brute force, the greedy plans and an upper bound."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.selection.problems import backbone_costs, problems, random_map
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import (
    Accounting,
    Budgets,
    Exact,
    ExactAccounting,
    FisherMap,
    PaperAccounting,
    Problem,
    TaskAdaptive,
    network_costs,
    plan_cost,
    select,
    upper_bound,
)
from tvm_tinytrain.selection.exact import maximise
from tvm_tinytrain.selection.integers import quantise
from tvm_tinytrain.selection.network import LayerSpec
from tvm_tinytrain.selection.paper import paper_backward_macs, paper_memory_bytes

Case = tuple[Accounting, FisherMap, Budgets]


def cost_functions(accounting: Accounting) -> tuple[Callable[[UpdatePlan], int], Callable[[UpdatePlan], int]]:
    """Bytes and MACs of a plan, by the functions on plans that share nothing with the search."""
    network = accounting.network
    if isinstance(accounting, PaperAccounting):
        optimizer = accounting.optimizer
        return lambda p: paper_memory_bytes(network, p, optimizer), lambda p: paper_backward_macs(network, p)
    assert isinstance(accounting, ExactAccounting)
    optimizer_cost = accounting.optimizer
    return (
        lambda p: plan_cost(network, p, optimizer_cost).memory_bytes,
        lambda p: plan_cost(network, p, optimizer_cost).backward_macs,
    )


def brute_force(accounting: Accounting, fisher: FisherMap, budgets: Budgets) -> int:
    """The largest Σ q over *all* sets of channels that keep both budgets."""
    q = quantise(fisher.layers)
    channels = [(layer, c) for layer in fisher for c in range(len(fisher[layer]))]
    memory_of, macs_of = cost_functions(accounting)
    best = 0
    for picks in product((False, True), repeat=len(channels)):
        chosen: dict[int, list[int]] = {}
        for (layer, channel), picked in zip(channels, picks, strict=True):
            if picked:
                chosen.setdefault(layer, []).append(channel)
        value = sum(int(q[layer][c]) for layer, picked_channels in chosen.items() for c in picked_channels)
        if value <= best:
            continue
        plan = UpdatePlan(
            tuple(
                LayerUpdate(layer, tuple(cs), bias=accounting.network[layer].biases_per_channel > 0)
                for layer, cs in chosen.items()
            )
        )
        memory, macs = budgets.memory_bytes, budgets.macs
        if (macs is None or macs_of(plan) <= macs) and (memory is None or memory_of(plan) <= memory):
            best = value
    return best


@settings(max_examples=150, deadline=None)
@given(problems(layers=5, channels=3))
def test_equals_brute_force_on_small_problems(case: Case) -> None:
    accounting, fisher, budgets = case
    assume(sum(len(fisher[layer]) for layer in fisher) <= 9)
    found = select(accounting, budgets, fisher, TaskAdaptive("exact", candidates=tuple(fisher)))
    assert found.proven
    assert found.captured == brute_force(accounting, fisher, budgets)


# few draws have at most 13 channels: the others are dropped, which is no fault of the test
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(problems(layers=7, channels=3))
def test_equals_brute_force_with_up_to_13_channels(case: Case) -> None:
    accounting, fisher, budgets = case
    assume(10 <= sum(len(fisher[layer]) for layer in fisher) <= 13)
    found = select(accounting, budgets, fisher, TaskAdaptive("exact", candidates=tuple(fisher)))
    assert found.captured == brute_force(accounting, fisher, budgets)


@settings(max_examples=200, deadline=None)
@given(problems(layers=8, channels=5), st.sampled_from([Fraction(1), Fraction(1, 3), Fraction(1, 4)]))
def test_never_worse_than_the_greedy_plans_and_within_the_budgets(case: Case, ratio: Fraction) -> None:
    """Without the exhaustive search, so that it is the heuristic that is tested."""
    accounting, fisher, budgets = case
    problem = Problem.make(accounting, fisher, budgets)
    counts, proven = maximise(problem, Exact(ratio, exhaustive_limit=0))
    assert not proven and problem.feasible(counts)
    assert maximise(Problem.make(accounting, fisher, budgets), Exact(ratio, exhaustive_limit=0))[0] == counts
    for overflow in ("skip", "stop"):
        options = TaskAdaptive("tinytrain", ratio, overflow, tuple(fisher))  # type: ignore[arg-type]
        assert problem.value(counts) >= select(accounting, budgets, fisher, options).captured


@settings(max_examples=100, deadline=None)
@given(problems(layers=6, channels=4, branches=False))
def test_heuristic_is_below_the_bound(case: Case) -> None:
    accounting, fisher, budgets = case
    problem = Problem.make(accounting, fisher, budgets)
    assert problem.value(maximise(problem)[0]) <= upper_bound(problem)


@pytest.mark.parametrize("name", ["mcunet", "mobilenet_v2", "proxyless_nas"])
def test_backbones_come_within_a_thousandth_of_the_bound(name: str) -> None:
    network = backbone_costs(name)
    candidates = network.last(18)
    for accounting in (PaperAccounting(network), ExactAccounting(network)):
        macs = accounting.full_macs * 15 // 100
        budgets = Budgets(accounting.memory_bytes({}) + 16 * 17_400, macs)
        for seed in range(3):
            fisher = random_map(network, candidates, seed)
            found = select(accounting, budgets, fisher, TaskAdaptive("exact"))
            bound = upper_bound(Problem.make(accounting, fisher, budgets, candidates))
            assert 0.999 * bound <= found.captured <= bound
            greedy = [
                select(accounting, budgets, fisher, TaskAdaptive(channel_ratio=Fraction(1, k)))
                for k in (2, 4, 8)
            ]
            assert found.captured > max(plan.captured for plan in greedy)


@settings(max_examples=60, deadline=None)
@given(problems(layers=5, channels=3, branches=False), st.integers(1, 200), st.integers(0, 60))
def test_planner_with_steps_of_its_own(case: Case, grain: int, surcharge: int) -> None:
    """A memory planner that rounds up and charges each layer: the search may not rely on per-channel bytes."""
    accounting, fisher, budgets = case
    if isinstance(accounting, PaperAccounting):
        accounting = ExactAccounting(accounting.network)
    network, optimizer = accounting.network, accounting.optimizer

    def planner(plan: UpdatePlan) -> int:
        needed = plan_cost(network, plan, optimizer).memory_bytes + surcharge * len(plan) ** 2
        return -(-needed // grain) * grain

    planned = ExactAccounting(network, optimizer, planner)
    limit = max(planner(UpdatePlan()), budgets.memory_limit if budgets.memory_bytes else 0)
    problem = Problem.make(planned, fisher, Budgets(limit, budgets.macs))
    heuristic, _ = maximise(problem, Exact(exhaustive_limit=0))
    complete, proven = maximise(problem, Exact(exhaustive_limit=1 << 20))
    assert proven and problem.feasible(heuristic) and problem.feasible(complete)
    assert problem.value(complete) >= problem.value(heuristic)
    assert planner(problem.plan(complete)) <= limit


def test_the_chain_is_worth_its_price_only_sometimes() -> None:
    """Two layers: the first has more potential, but pays for the input gradient of the second."""
    specs = [
        LayerSpec(0, "conv2d", (1, 4, 4), (1, 4, 4), bias=False),
        LayerSpec(1, "conv2d", (1, 4, 4), (8, 4, 4), bias=False),
    ]
    accounting = ExactAccounting(network_costs(specs))
    fisher = FisherMap({0: np.array([3], np.float32), 1: np.ones(8, np.float32)})
    chain, channel = specs_macs = (8 * 16, 16)
    assert specs_macs == (accounting.network[1].dx_macs, accounting.network[1].dw_macs_per_channel)

    def trained(macs: int) -> list[int]:
        return list(select(accounting, Budgets(None, macs), fisher, TaskAdaptive("exact")).plan)

    assert trained(channel - 1) == []
    assert trained(2 * channel) == [1]
    assert trained(chain + channel) == [1]  # eight channels of 1 are worth more than 0 alone
    assert trained(chain + 9 * channel) == [0, 1]


def test_no_limit_takes_every_channel_with_potential() -> None:
    network = backbone_costs("mcunet")
    fisher = random_map(network, network.last(18), seed=1)
    found = select(PaperAccounting(network), Budgets(), fisher, TaskAdaptive("exact"))
    assert found.captured == found.available and found.share == 1.0


def test_the_planner_is_asked_about_a_hundred_times() -> None:
    """It is the expensive part on a device."""
    network = backbone_costs("mobilenet_v2")
    accounting = ExactAccounting(network)
    budgets = Budgets(accounting.memory_bytes({}) + 250_000, accounting.full_macs * 15 // 100)
    problem = Problem.make(accounting, random_map(network, network.last(18), seed=2), budgets)
    maximise(problem)
    assert problem.plans_costed <= 120
