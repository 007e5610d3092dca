"""Maps of potentials: values, JSON, norms and draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection.problems import networks, potentials
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import FisherMap, captured_share, squared_norms
from tvm_tinytrain.selection.fisher import random_potentials


@settings(max_examples=50)
@given(st.data())
def test_json_keeps_every_bit(data: st.DataObject) -> None:
    fisher = data.draw(potentials(data.draw(networks())))
    assert FisherMap.from_json(fisher.to_json()) == fisher
    assert FisherMap.from_json(fisher.to_json()).to_json() == fisher.to_json()


def test_values_are_copied_and_read_only() -> None:
    vector = np.ones(3, np.float32)
    fisher = FisherMap({4: vector, 1: vector})
    vector[0] = 9
    assert list(fisher) == [1, 4] and fisher[4].tolist() == [1, 1, 1]
    assert 4 in fisher and 2 not in fisher and len(fisher) == 2
    with pytest.raises(ValueError, match="read-only"):
        fisher[4][0] = 2
    assert fisher != FisherMap({4: fisher[4]})


@pytest.mark.parametrize(
    "layers", [{}, {0: np.zeros(0, np.float32)}, {0: np.zeros(2)}, {0: np.zeros((2, 2), np.float32)}]
)
def test_other_values_are_refused(layers: dict[int, np.ndarray]) -> None:
    with pytest.raises(PlanError, match="selection"):
        FisherMap(layers)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format":2,"layers":{}}',
        '{"format":1,"layers":{"a":[1]}}',
        '{"format":1,"layers":3}',
    ],
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="Fisher map"):
        FisherMap.from_json(text)


def test_a_missing_layer_is_named() -> None:
    with pytest.raises(PlanError, match=r"potentials of layer 5: found none; allowed one of \[2\]"):
        FisherMap({2: np.ones(1, np.float32)})[5]


def test_squared_norms() -> None:
    weight = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    assert squared_norms({3: weight})[3].tolist() == [14.0, 126.0]


def test_draws_do_not_depend_on_the_order_of_the_layers() -> None:
    scores, drawn = random_potentials({2: 3, 1: 2}, seed=5)
    again, same = random_potentials({1: 2, 2: 3}, seed=5)
    assert (scores, drawn) == (again, same)
    assert random_potentials({1: 2, 2: 3}, seed=6)[1] != drawn
    assert all((vector < 2**24).all() for vector in drawn.layers.values())


def test_captured_share_of_any_plan() -> None:
    fisher = FisherMap({0: np.array([1, 2], np.float32), 1: np.array([5], np.float32)})
    plan = UpdatePlan((LayerUpdate(0, (1,)), LayerUpdate(7, (0,))))
    assert captured_share(fisher, plan) == 0.25
    assert captured_share(fisher, plan, [0]) == pytest.approx(2 / 3)
    assert captured_share(FisherMap({0: np.zeros(2, np.float32)}), plan) == 0.0
