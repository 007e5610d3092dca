"""Budgets, errors of `select`, and that selection needs neither TVM nor torch."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import tvm_tinytrain.selection
from tests.selection.problems import backbone_costs, random_map
from tvm_tinytrain.config import SGD, Adam, Budget
from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import (
    Budgets,
    ExactAccounting,
    FisherMap,
    OptimizerCost,
    PaperAccounting,
    TaskAdaptive,
    select,
)

NETWORK = backbone_costs("mcunet")
FISHER = random_map(NETWORK, NETWORK.last(18), seed=0)


def test_budgets_are_integers_of_what_was_written() -> None:
    paper, exact = PaperAccounting(NETWORK), ExactAccounting(NETWORK)
    assert Budgets.of(Budget("0.89MB", 0.15), paper) == Budgets(933_232, 6_736_051)
    assert Budgets.of(Budget(None, 1.0), exact).macs == NETWORK.backward_macs
    assert Budgets.of(Budget(), exact) == Budgets()


def test_optimizer_costs() -> None:
    assert OptimizerCost.of(Adam()).bytes_per_parameter == 12
    assert OptimizerCost.of(Adam(), accumulate=True).bytes_per_parameter == 16
    assert OptimizerCost.of(SGD()).bytes_per_parameter == 4
    assert OptimizerCost.of(SGD(momentum=0.9)).bytes_per_parameter == 8


def test_negative_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="compute budget: found -1"):
        Budgets(0, -1)


@pytest.mark.parametrize("criterion", ["tinytrain", "exact", "random"])
def test_a_network_that_does_not_fit_frozen_is_an_error(criterion: str) -> None:
    with pytest.raises(BudgetError, match="found 655359 bytes; allowed 655360 or more"):
        select(PaperAccounting(NETWORK), Budgets(655_359), FISHER, TaskAdaptive(criterion))


@pytest.mark.parametrize("criterion", ["tinytrain", "exact", "random"])
def test_where_no_channel_fits_the_plan_is_empty(criterion: str) -> None:
    found = select(PaperAccounting(NETWORK), Budgets(655_360, 0), FISHER, TaskAdaptive(criterion))
    assert (found.plan, found.captured, found.macs) == (UpdatePlan(), 0, 0)


def test_potentials_must_be_there_and_fit() -> None:
    with pytest.raises(PlanError, match="potentials: found None; allowed a map for the criterion exact"):
        select(PaperAccounting(NETWORK), Budgets(), None, TaskAdaptive("exact"))
    with pytest.raises(PlanError, match="potentials of layer 23: found none"):
        select(PaperAccounting(NETWORK), Budgets(), FISHER, TaskAdaptive(candidates=19))
    short = FisherMap({41: np.ones(3, np.float32)})
    with pytest.raises(PlanError, match="layer 41: found 3 potentials; allowed 160"):
        select(PaperAccounting(NETWORK), Budgets(), short, TaskAdaptive(candidates=1))


def test_candidates_are_the_last_layers_or_named_ones() -> None:
    found = select(PaperAccounting(NETWORK), Budgets(), FISHER, TaskAdaptive(candidates=(30, 40)))
    assert sorted(found.ranking) == [30, 40]
    assert len(select(PaperAccounting(NETWORK), Budgets(), FISHER).ranking) == 18


def test_a_planner_that_looks_at_the_channels_is_found_out() -> None:
    def planner(plan: UpdatePlan) -> int:
        return 1000 + sum(sum(update.outputs) for update in plan.layers)

    accounting = ExactAccounting(NETWORK, memory_of=planner)
    fisher = FisherMap({41: np.arange(160, dtype=np.float32)})
    with pytest.raises(PlanError, match="must not depend on which channels"):
        select(accounting, Budgets(1800), fisher, TaskAdaptive(candidates=(41,)))


def test_selection_imports_neither_tvm_nor_torch() -> None:
    for path in sorted(Path(tvm_tinytrain.selection.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"tvm", "torch", "tvm_ffi"}, path.name
            assert not any(
                name.startswith(("tvm_tinytrain.passes", "tvm_tinytrain.models")) for name in names
            )


def test_expansions_of_the_last_layers() -> None:
    paper = PaperAccounting(NETWORK)
    chosen = TaskAdaptive(layer_kind="expansions").layers(paper)
    assert chosen == (24, 27, 30, 33, 36, 39)  # first 1×1 convolutions of the last six blocks
    assert TaskAdaptive(layer_kind="auto").layers(paper) == chosen
    assert TaskAdaptive(layer_kind="auto", candidates=(40, 41)).layers(paper) == (40, 41)  # none among them
    assert TaskAdaptive(layer_kind="expansions", blocks=2).layers(paper) == (36, 39)
    assert set(NETWORK.last(18)) > set(chosen)
    with pytest.raises(PlanError, match="layer 99"):  # not dropped among those that are no expansion
        select(paper, Budgets(), FISHER, TaskAdaptive(layer_kind="auto", candidates=(39, 99)))
    found = select(paper, Budgets(), FISHER, TaskAdaptive("exact", layer_kind="expansions"))
    assert {update.layer for update in found.plan.layers} == set(chosen)
    with pytest.raises(PlanError, match="no expansion among layers 40, 41; allowed layers with inverted"):
        TaskAdaptive(layer_kind="expansions", candidates=(40, 41)).layers(paper)
    with pytest.raises(PlanError, match="layer_kind: found 'some'; allowed all, expansions, auto"):
        TaskAdaptive(layer_kind="some")  # type: ignore[arg-type]
