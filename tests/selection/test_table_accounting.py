"""Tables of a library as an accounting: costs, metadata, plans and bit maps, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection.problems import backbone_costs, networks
from tests.selection.tables import tables
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import (
    ChainLink,
    ExactAccounting,
    NetworkCosts,
    TableAccounting,
    TableCandidate,
    plan_cost,
)


def example() -> TableAccounting:
    return TableAccounting(
        (
            TableCandidate(2, 3, 30, 900, channel_bytes=40, channel_macs=7),
            TableCandidate(5, 6, 12, 800, channel_bytes=8, channel_macs=5, bias=False),
        ),
        (1000, 700, 500),
        (ChainLink(0b01, 100), ChainLink(0b11, 60)),
        9999,
    )


def test_costs() -> None:
    made = example()
    assert [made.memory_bytes(c) for c in ({}, {2: 0}, {5: 2}, {2: 1}, {2: 3, 5: 6})] == [
        500,
        500,
        716,
        1040,
        1168,
    ]
    assert [made.backward_macs(c) for c in ({}, {5: 2}, {2: 1}, {2: 3, 5: 6})] == [0, 70, 167, 211]
    assert made.layers == (2, 5) and made.total_channels == 9 and len(made.network) == 6
    with pytest.raises(PlanError, match=r"layer 3: found no candidate; allowed one of \[2, 5\]"):
        made.memory_bytes({3: 1})


def metadata(made: TableAccounting) -> dict[str, Any]:
    names = ("layer", "channels", "weights", "forward_macs", "channel_bytes", "channel_macs", "bias")
    return {
        "adaptive": {
            "candidates": [{name: getattr(c, name) for name in names} for c in made.candidates],
            "activation_bytes": list(made.activation_bytes),
            "links": [{"needed": link.needed, "macs": link.macs} for link in made.links],
            "full_macs": made.full_macs,
        }
    }


@settings(max_examples=50)
@given(tables())
def test_metadata_round_trip(made: TableAccounting) -> None:
    assert TableAccounting.from_metadata(json.loads(json.dumps(metadata(made)))) == made


def test_bias_is_true_unless_said() -> None:
    raw = metadata(example())
    for entry in raw["adaptive"]["candidates"]:
        del entry["bias"]
    assert all(c.bias for c in TableAccounting.from_metadata(raw).candidates)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("candidates", 0, "channels"), 0),
        (("candidates", 0, "channels"), 1 << 16),
        (("candidates", 0, "layer"), 5),
        (("candidates", 1, "layer"), -1),
        (("candidates", 0, "weights"), 0),
        (("candidates", 0, "forward_macs"), 1 << 32),
        (("candidates", 0, "channel_bytes"), -1),
        (("candidates", 0, "channel_macs"), 1.5),
        (("candidates",), []),
        (("candidates",), None),
        (("activation_bytes",), [1, 2]),
        (("activation_bytes", 0), 1 << 32),
        (("activation_bytes", 0), "1"),
        (("links", 0, "needed"), -1),
        (("links", 0, "needed"), 1 << 64),
        (("links", 0, "macs"), 1 << 32),
        (("full_macs",), None),
    ],
)
def test_malformed_metadata(path: tuple[str | int, ...], value: object) -> None:
    raw = metadata(example())
    at: Any = raw["adaptive"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(PlanError):
        TableAccounting.from_metadata(raw)


def test_no_metadata() -> None:
    for raw in ({}, {"adaptive": {}}, {"adaptive": None}):
        with pytest.raises(PlanError, match="build the library with update=TaskAdaptive"):
            TableAccounting.from_metadata(raw)


@settings(max_examples=100)
@given(tables(), st.data())
def test_bit_maps(made: TableAccounting, data: st.DataObject) -> None:
    size = made.total_channels
    bits = data.draw(st.integers(0, (1 << size) - 1))
    raw = bits.to_bytes((size + 7) // 8, "little")
    plan = made.plan(raw)
    assert made.bitmap(plan) == raw
    assert sum(len(update.outputs) for update in plan.layers) == bits.bit_count()
    assert all(
        update.bias == next(c.bias for c in made.candidates if c.layer == update.layer)
        for update in plan.layers
    )


def test_bit_maps_of_something_else() -> None:
    made = example()
    assert made.plan(b"\x02\x01") == UpdatePlan((LayerUpdate(2, (1,)), LayerUpdate(5, (5,), bias=False)))
    for raw in (b"", b"\0", b"\0\0\0", b"\0\2"):
        with pytest.raises(PlanError, match="bit map"):
            made.plan(raw)
    for plan in (UpdatePlan.from_channels({2: [3]}), UpdatePlan.from_channels({4: [0]})):
        with pytest.raises(PlanError):
            made.bitmap(plan)


@settings(max_examples=100)
@given(networks(layers=7), st.data())
def test_tables_from_costs(network: NetworkCosts, data: st.DataObject) -> None:
    """MACs are those of the cost model for every plan; bytes are too where all layers from the earliest on
    are trained, and never less."""
    accounting = ExactAccounting(network)
    ids = data.draw(st.sets(st.integers(0, len(network) - 1), min_size=1))
    made = TableAccounting.from_costs(accounting, sorted(ids))
    counts = {i: data.draw(st.integers(0, network[i].channels)) for i in sorted(ids)}
    plan = UpdatePlan(
        tuple(
            LayerUpdate(i, tuple(range(k)), bias=network[i].biases_per_channel > 0)
            for i, k in counts.items()
            if k
        )
    )
    cost = plan_cost(network, plan, accounting.optimizer)
    assert made.backward_macs(counts) == cost.backward_macs
    assert made.memory_bytes(counts) >= cost.memory_bytes
    earliest = min((i for i, k in counts.items() if k), default=len(network))
    if all(counts[i] for i in ids if i >= earliest):
        assert made.memory_bytes(counts) == cost.memory_bytes


def test_tables_of_a_backbone() -> None:
    network = backbone_costs("mcunet")
    made = TableAccounting.from_costs(ExactAccounting(network), network.last(18))
    assert made.layers == network.last(18) and made.full_macs == network.backward_macs
    assert list(made.activation_bytes) == sorted(made.activation_bytes, reverse=True)
    assert len(made.links) == 18 - 1  # the last layer's dX is asked for by 17 others, the first's by none
