"""UpdatePlan: canonical text, digest, mapping access, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan

channels = st.sets(st.integers(0, 400), min_size=1, max_size=20).map(lambda found: tuple(sorted(found)))
flags = st.sampled_from([(True, True), (True, False), (False, True)])


@st.composite
def plans(draw: st.DrawFn) -> UpdatePlan:
    layers = draw(st.sets(st.integers(0, 60), max_size=8))
    updates = []
    for layer in draw(st.permutations(sorted(layers))):
        weight, bias = draw(flags)
        inputs = draw(st.none() | channels)
        updates.append(LayerUpdate(layer, draw(channels), inputs, weight, bias))
    return UpdatePlan(tuple(updates))


@given(plans())
def test_json_round_trip_is_canonical(plan: UpdatePlan) -> None:
    text = plan.to_json()
    again = UpdatePlan.from_json(text)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.to_json() == text
    assert again.digest == plan.digest
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert UpdatePlan.from_json(text.encode()) == plan


@given(plans())
def test_order_of_layers_does_not_matter(plan: UpdatePlan) -> None:
    assert UpdatePlan(plan.layers[::-1]) == plan
    assert list(plan) == sorted(plan)
    assert plan.earliest == min(plan, default=None)


@given(plans(), plans())
def test_different_plans_have_different_digests(one: UpdatePlan, other: UpdatePlan) -> None:
    assert (one == other) == (one.digest == other.digest)


def test_text_and_digest_stay_what_they_are() -> None:
    """Both are written into artifacts and checkpoints: a change here makes old ones unreadable."""
    plan = UpdatePlan.from_channels({5: [1, 2], 3: [0]})
    assert plan.to_json() == (
        '{"format":1,"layers":[{"bias":true,"inputs":null,"layer":3,"outputs":[0],"weight":true},'
        '{"bias":true,"inputs":null,"layer":5,"outputs":[1,2],"weight":true}]}'
    )
    assert plan.digest == "c638cf5033155c1b"


def test_reads_like_a_mapping() -> None:
    plan = UpdatePlan.from_channels({7: [0, 4], 2: [1]})
    assert plan[7] == LayerUpdate(7, (0, 4))
    assert 2 in plan
    assert 3 not in plan
    assert "2" not in plan
    assert list(plan) == [2, 7]
    assert len(plan) == 2
    assert plan.earliest == 2
    assert not UpdatePlan()
    assert UpdatePlan().earliest is None
    with pytest.raises(PlanError, match=r"layer 3: found not in the plan; allowed one of \[2, 7\]"):
        plan[3]


def test_survives_copies_and_takes_numpy_integers() -> None:
    plan = UpdatePlan.from_channels({np.int64(4): np.array([0, 9])})  # type: ignore[dict-item]
    assert plan == UpdatePlan.from_channels({4: (0, 9)})
    assert plan.to_json() == UpdatePlan.from_channels({4: (0, 9)}).to_json()
    assert len(plan.digest) == 16
    assert copy.deepcopy(plan) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert {plan: 1}[UpdatePlan.from_channels({4: [0, 9]})] == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"layer": 1, "outputs": (2, 1)}, r"outputs of layer 1: found \[2, 1\]; allowed sorted, unique"),
        ({"layer": 1, "outputs": (1, 1)}, r"found \[1, 1\]; allowed sorted, unique"),
        ({"layer": 1, "outputs": (-1, 1)}, r"found \[-1, 1\]; allowed sorted, unique, non-negative"),
        ({"layer": 1, "outputs": ()}, "outputs of layer 1: found no channel"),
        ({"layer": 1, "outputs": (1.0,)}, "outputs of layer 1: found 1.0; allowed an integer"),
        ({"layer": 1, "outputs": (True,)}, "outputs of layer 1: found True; allowed an integer"),
        ({"layer": 1, "outputs": (1,), "inputs": (3, 2)}, r"inputs of layer 1: found \[3, 2\]"),
        ({"layer": -1, "outputs": (1,)}, "layer id: found -1"),
        ({"layer": "a", "outputs": (1,)}, "layer id: found 'a'"),
        ({"layer": 1, "outputs": (1,), "bias": 1}, "bias of layer 1: found 1; allowed true or false"),
        ({"layer": 1, "outputs": (1,), "weight": False, "bias": False}, "neither weight nor bias"),
    ],
)
def test_a_wrong_layer_is_refused(layer: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match="update plan: .*" + message):
        LayerUpdate(**layer)  # type: ignore[arg-type]


def test_a_layer_may_not_occur_twice() -> None:
    with pytest.raises(PlanError, match="layer 1: found two entries"):
        UpdatePlan((LayerUpdate(1, (0,)), LayerUpdate(1, (2,))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "json text: found .*allowed a JSON object"),
        ("[]", "json text: found list"),
        ('{"layers":[]}', r"json text: found \['layers'\]"),
        ('{"format":1,"layers":3}', "json text"),
        ('{"format":2,"layers":[]}', "json format: found 2; allowed 1"),
        ('{"format":1,"layers":[3]}', "json layer: found int"),
        ('{"format":1,"layers":[{"layer":1}]}', r"json layer: found \['layer'\]"),
        (
            '{"format":1,"layers":[{"bias":true,"inputs":null,"layer":3,"outputs":"12","weight":true}]}',
            "json outputs of layer 3: found '12'; allowed a list",
        ),
        (
            '{"format":1,"layers":[{"bias":true,"inputs":null,"layer":3,"outputs":[2,1],"weight":true}]}',
            "outputs of layer 3",
        ),
    ],
)
def test_wrong_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        UpdatePlan.from_json(text)
