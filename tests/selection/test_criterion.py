"""The paper's greedy selection and its ablations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection.problems import backbone_costs, problems, random_map
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.selection import (
    Accounting,
    Budgets,
    ExactAccounting,
    FisherMap,
    LayerSpec,
    PaperAccounting,
    Problem,
    TaskAdaptive,
    network_costs,
    select,
)
from tvm_tinytrain.selection.criterion import SCORES, Greedy, rank, take_greedily

CRITERIA = sorted(SCORES)
Case = tuple[Accounting, FisherMap, Budgets]


def chain(*channels: int) -> PaperAccounting:
    """1×1 convolutions over 4×4 with these numbers of output channels; the input has 2."""
    widths = (2, *channels)
    specs = [
        LayerSpec(i, "conv2d", (before, 4, 4), (after, 4, 4))
        for i, (before, after) in enumerate(zip(widths, channels, strict=False))
    ]
    return PaperAccounting(network_costs(specs))


@settings(max_examples=200)
@given(
    problems(),
    st.sampled_from(CRITERIA),
    st.fractions(Fraction(1, 1024), 1, max_denominator=1024),
    st.sampled_from(["skip", "stop"]),
    st.integers(0, 99),
)
def test_budgets_hold_and_the_answer_is_always_the_same(
    case: Case, criterion: str, ratio: Fraction, overflow: str, seed: int
) -> None:
    accounting, fisher, budgets = case
    options = TaskAdaptive(criterion, ratio, overflow, candidates=tuple(fisher), seed=seed)  # type: ignore[arg-type]
    found = select(accounting, budgets, fisher, options)
    counts = {update.layer: len(update.outputs) for update in found.plan.layers}
    assert found.memory_bytes == accounting.memory_bytes(counts)
    assert found.macs == accounting.backward_macs(counts)
    assert budgets.memory_bytes is None or found.memory_bytes <= budgets.memory_bytes
    assert budgets.macs is None or found.macs <= budgets.macs
    for layer, count in counts.items():
        assert count == max(1, accounting.network[layer].channels * ratio.numerator // ratio.denominator)
    again = select(accounting, budgets, FisherMap(dict(reversed(fisher.layers.items()))), options)
    assert again == found
    assert list(found.ranking) == list(dict.fromkeys(found.ranking))


@settings(max_examples=100)
@given(problems(), st.sampled_from(["tinytrain", "fisher", "fisher/memory", "fisher/compute"]))
def test_ranking_is_by_the_papers_formula(case: Case, criterion: str) -> None:
    accounting, fisher, _ = case
    problem = Problem.make(accounting, fisher, Budgets())
    network = accounting.network
    largest_weights = max(layer.weights for layer in network)
    largest_macs = max(layer.forward_macs for layer in network)

    def score(position: int) -> tuple[Fraction, int]:
        candidate = problem.candidates[position]
        weights = Fraction(candidate.layer.weights, largest_weights)
        macs = Fraction(candidate.layer.forward_macs, largest_macs)
        cost = {
            "tinytrain": weights * macs,
            "fisher": Fraction(1),
            "fisher/memory": weights,
            "fisher/compute": macs,
        }
        return -candidate.potential / cost[criterion], position

    expected = sorted((i for i, c in enumerate(problem.candidates) if c.potential), key=score)
    assert rank(problem, criterion) == expected


def test_channels_are_the_best_with_ties_to_the_smaller_index() -> None:
    fisher = FisherMap({0: np.array([1, 3, 2, 3, 3], np.float32)})
    found = select(chain(5), Budgets(), fisher, TaskAdaptive(channel_ratio=Fraction(2, 5)))
    assert found.plan[0].outputs == (1, 3)
    assert found.share == pytest.approx(0.5)


def test_layers_of_equal_score_come_in_order_of_their_ids() -> None:
    fisher = FisherMap({i: np.ones(2, np.float32) for i in range(3)})
    assert select(chain(2, 2, 2), Budgets(), fisher).ranking == (0, 1, 2)


def test_a_layer_without_potential_is_never_trained() -> None:
    fisher = FisherMap({0: np.zeros(2, np.float32), 1: np.ones(2, np.float32)})
    assert list(select(chain(2, 2), Budgets(), fisher, TaskAdaptive(channel_ratio=Fraction(1))).plan) == [1]


def test_overflow_rules() -> None:
    """Scores 3 > 2 > 1; the second does not fit."""
    accounting = chain(2, 16, 1)
    fisher = FisherMap(
        {0: np.array([9, 9], np.float32), 1: np.full(16, 9, np.float32), 2: np.array([0.1], np.float32)}
    )
    whole = {0: 2, 2: 1}
    budgets = Budgets(accounting.memory_bytes(whole))
    options = {"criterion": "tinytrain", "channel_ratio": Fraction(1)}
    assert select(accounting, Budgets(), fisher, TaskAdaptive(**options)).ranking == (0, 1, 2)  # type: ignore[arg-type]
    skip = select(accounting, budgets, fisher, TaskAdaptive(**options, overflow="skip"))  # type: ignore[arg-type]
    stop = select(accounting, budgets, fisher, TaskAdaptive(**options, overflow="stop"))  # type: ignore[arg-type]
    assert (list(skip.plan), list(stop.plan)) == ([0, 2], [0])


@settings(max_examples=100)
@given(problems())
def test_skip_contains_what_stop_takes(case: Case) -> None:
    accounting, fisher, budgets = case
    problem = Problem.make(accounting, fisher, budgets)
    ranking = rank(problem, "tinytrain")
    stop = take_greedily(problem, Greedy(overflow="stop"), ranking)
    skip = take_greedily(problem, Greedy(overflow="skip"), ranking)
    assert all(a <= b for a, b in zip(stop, skip, strict=True))


def test_random_selection_depends_on_the_seed_alone() -> None:
    network = backbone_costs("mcunet")
    accounting = ExactAccounting(network)
    budgets = Budgets(accounting.memory_bytes({}) + 200_000, network.backward_macs * 15 // 100)
    found = [select(accounting, budgets, None, TaskAdaptive("random", seed=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_l2_takes_the_norms_of_the_weights() -> None:
    network = backbone_costs("mcunet")
    norms = random_map(network, network.last(18), seed=3)
    found = select(PaperAccounting(network), Budgets(), norms, TaskAdaptive("l2"))
    totals = {layer: float(norms[layer].sum()) for layer in norms}
    assert list(found.ranking) == sorted(totals, key=lambda layer: -totals[layer])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "entropy"}, "criterion: found 'entropy'; allowed tinytrain, fisher, .*exact"),
        (
            {"channel_ratio": Fraction(0)},
            "channel_ratio: found 0; allowed above 0, at most 1; the paper leaves",
        ),
        ({"channel_ratio": Fraction(3, 2)}, "channel_ratio: found 3/2"),
        ({"overflow": "wrap"}, "overflow: found wrap; allowed skip, stop"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        TaskAdaptive(**options)  # type: ignore[arg-type]


def test_a_ratio_may_be_a_float() -> None:
    assert TaskAdaptive(channel_ratio=0.1).channel_ratio == Fraction(1, 10)  # type: ignore[arg-type]
