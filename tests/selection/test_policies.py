"""Static policies, adapters and resampling."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection.problems import backbone, backbone_costs, random_map
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import (
    SCHEMES,
    ExactAccounting,
    bias_only,
    full_train,
    last_layer,
    lite_residuals,
    resample,
    sparse_update,
)

PREFIX = {"mcunet": "mcunet", "mbv2": "mobilenet_v2", "proxyless": "proxyless_nas"}


def test_full_train_last_layer_bias_only() -> None:
    network = backbone_costs("mcunet")
    assert (
        sum(len(u.outputs) * network[u.layer].weights_per_channel for u in full_train(network).layers)
        == 463_216
    )
    assert last_layer(network) == UpdatePlan((LayerUpdate(41, tuple(range(160))),))
    plan = bias_only(network, 2)
    assert [(u.layer, u.weight, u.bias, len(u.outputs)) for u in plan.layers] == [
        (40, False, True, 576),
        (41, False, True, 160),
    ]
    assert len(bias_only(network)) == 42


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_every_scheme_fits_its_backbone(scheme: str) -> None:
    network = backbone_costs(PREFIX[scheme.split("-")[0]])
    plan = sparse_update(network, scheme)
    network.check(plan)
    found = SCHEMES[scheme]
    assert list(plan) == sorted(found.weights)
    assert not any(update.bias for update in plan.layers)
    for update in plan.layers:
        layer = network[update.layer]
        rows, columns = len(update.outputs), layer.inputs if update.inputs is None else len(update.inputs)
        assert Fraction(rows * columns, layer.channels * layer.inputs) == found.weights[update.layer]
    with_biases = sparse_update(network, scheme, biases=True)
    assert sum(update.bias for update in with_biases.layers) == found.biases
    last = [update.layer for update in with_biases.layers if update.bias]
    assert last == list(range(found.layers - found.biases, found.layers))
    assert {u.layer: u.inputs for u in with_biases.layers if u.weight} == {
        u.layer: u.inputs for u in plan.layers
    }


def test_input_channels_of_largest_norm_are_trained() -> None:
    network = backbone_costs("mcunet")
    rng = np.random.default_rng(0)
    weights = {36: rng.normal(size=(384, 96, 1, 1)).astype(np.float32)}
    weights[36][:, 90:] *= 10
    plan = sparse_update(network, "mcunet-99kb", {**weights, 39: np.ones((576, 96, 1, 1), np.float32)})
    chosen = plan[36].inputs
    assert chosen is not None and len(chosen) == 12 and set(range(90, 96)) <= set(chosen)
    assert plan[39].inputs == tuple(range(24))  # equal norms: the smaller index


def test_depthwise_layers_of_a_scheme_train_a_share_of_their_channels() -> None:
    network = backbone_costs("mobilenet_v2")
    plan = sparse_update(network, "mbv2-49kb")
    assert network[49].depthwise
    assert (len(plan[49].outputs), plan[49].inputs) == (network[49].channels // 8, None)


def test_unknown_scheme_and_short_network() -> None:
    with pytest.raises(PlanError, match="scheme: found 'mcunet-1kb'; allowed mbv2-49kb"):
        sparse_update(backbone_costs("mcunet"), "mcunet-1kb")
    with pytest.raises(PlanError, match="mbv2-99kb: found 42 layers; allowed at least 51"):
        sparse_update(backbone_costs("mcunet"), "mbv2-99kb")


@pytest.mark.parametrize(("drop", "kept"), [(0, 14), ("1/4", 11), ("1/2", 7), ("3/4", 4)])
def test_adapters(drop: str, kept: int) -> None:
    adapters = lite_residuals(backbone("mcunet"), Fraction(drop))
    assert len(adapters) == kept and adapters[-1].block == 13
    for adapter in adapters:
        first, second = adapter.layers
        assert first.in_shape[1] == -(-adapter.in_shape[1] // 2)
        assert second.out_shape[0] == adapter.out_shape[0]
        assert second.out_shape[1] == -(-adapter.out_shape[1] // 2)
        assert adapter.costs[0].weights == adapter.in_shape[0] ** 2 // 2 * 25


def test_adapters_need_blocks_and_a_share() -> None:
    with pytest.raises(PlanError, match="drop: found 1; allowed a share of at least 0, below 1"):
        lite_residuals(backbone("mcunet"), Fraction(1))
    with pytest.raises(PlanError, match="blocks: found none"):
        lite_residuals(backbone("mcunet")[:1])


PLAN = UpdatePlan((LayerUpdate(30, (0, 5, 7)), LayerUpdate(41, tuple(range(40)), bias=False)))


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_resampling_keeps_the_costs(seed: int, step: int) -> None:
    network = backbone_costs("mcunet")
    drawn = resample(network, PLAN, seed, step)
    assert {u.layer: len(u.outputs) for u in drawn.layers} == {30: 3, 41: 40}
    assert drawn == resample(network, PLAN, seed, step)
    assert [u.bias for u in drawn.layers] == [True, False]
    counts = {u.layer: len(u.outputs) for u in PLAN.layers}
    accounting = ExactAccounting(network)
    assert accounting.memory_bytes(
        {u.layer: len(u.outputs) for u in drawn.layers}
    ) == accounting.memory_bytes(counts)
    network.check(drawn)


def test_resampling_draws_every_channel_equally_often() -> None:
    network = backbone_costs("mcunet")
    seen = np.zeros(160)
    for step in range(1, 401):
        seen[list(resample(network, PLAN, 1, step)[41].outputs)] += 1
    assert abs(seen.mean() - 100) < 1e-9
    assert seen.min() > 60 and seen.max() < 140  # mean 100, standard deviation 8.7


def test_resampling_can_keep_the_best() -> None:
    network = backbone_costs("mcunet")
    fisher = random_map(network, (30, 41), seed=1)
    drawn = resample(network, PLAN, 1, 3, keep=Fraction(1, 2), potentials=fisher)
    best = sorted(PLAN[41].outputs, key=lambda c: (-fisher[41][c], c))[:20]
    assert set(best) <= set(drawn[41].outputs)
    assert resample(network, PLAN, 1, 0) == PLAN
    assert resample(network, PLAN, 1, 1) != resample(network, PLAN, 1, 2)
    assert resample(network, PLAN, 1, 9, keep=Fraction(1), potentials=fisher) == PLAN
    with pytest.raises(PlanError, match="keep"):
        resample(network, PLAN, 1, 1, keep=Fraction(1, 2))
