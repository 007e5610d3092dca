"""Live bytes of a step, counted by hand and against a simulation of every tensor's lifetime."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection.problems import backbone_costs, networks
from tvm_tinytrain.selection import (
    ExactAccounting,
    LayerSpec,
    NetworkCosts,
    OptimizerCost,
    bias_only,
    full_train,
    network_costs,
    plan_cost,
    sparse_update,
)
from tvm_tinytrain.selection.liveness import live_bytes


def simulate(network: NetworkCosts, saved: set[int]) -> tuple[int, int]:
    """Peaks of forward and backward pass from the first and last use of every tensor, without residuals."""
    n, earliest = len(network), min(saved, default=len(network))
    sizes: dict[str, int] = {}
    uses: dict[str, list[int]] = {}
    for layer in network:
        back = 2 * n - 1 - layer.id
        sizes[f"x{layer.id}"], sizes[f"x{layer.id + 1}"] = layer.in_bytes, layer.out_bytes
        uses.setdefault(f"x{layer.id}", []).append(layer.id)
        uses.setdefault(f"x{layer.id + 1}", []).append(layer.id)
        if layer.id in saved:
            uses[f"x{layer.id}"].append(back)
        if layer.id >= earliest:
            sizes[f"mask{layer.id}"], uses[f"mask{layer.id}"] = layer.mask_bytes, [layer.id, back]
            sizes[f"dx{layer.id + 1}"] = layer.out_bytes
            uses.setdefault(f"dx{layer.id + 1}", []).append(back)
        if layer.id > earliest:
            sizes[f"dx{layer.id}"] = layer.in_bytes
            uses.setdefault(f"dx{layer.id}", []).append(back)
    live = [
        sum(sizes[name] for name, steps in uses.items() if min(steps) <= step <= max(steps))
        for step in range(2 * n - earliest if saved else n)
    ]
    return max(live[:n]), max(live[n:], default=0)


@settings(max_examples=100)
@given(networks(branches=False), st.sets(st.integers(0, 5), max_size=4))
def test_peaks_are_those_of_a_simulation(network: NetworkCosts, trained: set[int]) -> None:
    trained = {layer for layer in trained if layer < len(network)}
    live = live_bytes(network, {layer: network[layer].in_bytes for layer in trained})
    assert (live.forward, live.backward) == simulate(network, trained)


def test_residual_lives_through_its_block() -> None:
    shape, wide = (2, 4, 4), (4, 4, 4)
    specs = [
        LayerSpec(0, "conv2d", shape, wide),
        LayerSpec(1, "conv2d", wide, shape, skip=0),
    ]
    network = network_costs(specs)
    small, large = 4 * 32, 4 * 64
    assert live_bytes(network, {}).forward == small + large + small
    assert (
        live_bytes(network, {0: small}).forward == small + large + small
    )  # saved and waiting: the same tensor


def test_forward_peaks_of_the_backbones() -> None:
    """MCUNet's is the paper's 640 KB; the paper counts a depthwise layer in place, so its other two are smaller."""
    peaks = {
        name: live_bytes(backbone_costs(name), {}).peak
        for name in ("mcunet", "mobilenet_v2", "proxyless_nas")
    }
    assert peaks == {"mcunet": 655_360, "mobilenet_v2": 983_040, "proxyless_nas": 524_288}


def test_plan_cost_of_a_scheme_and_of_biases() -> None:
    network = backbone_costs("mcunet")
    cost = plan_cost(network, sparse_update(network, "mcunet-99kb"), OptimizerCost(2, accumulate=True))
    assert cost.trained_parameters == 52_480
    assert (cost.weight_bytes, cost.gradient_bytes, cost.state_bytes) == (209_920, 209_920, 419_840)
    assert cost.memory_bytes == 839_680 + cost.live.peak
    assert (cost.dx_macs + cost.dw_macs, cost.backward_macs) == (11_882_240, 11_882_240)
    biases = plan_cost(network, bias_only(network, 3))
    assert biases.trained_parameters == sum(layer.channels for layer in network.layers[-3:])
    assert (biases.dw_macs, biases.live.saved_inputs) == (0, 0)
    assert biases.live.masks == sum(layer.mask_bytes for layer in network.layers[-3:])


def test_full_train_costs_everything() -> None:
    network = backbone_costs("mcunet")
    cost = plan_cost(network, full_train(network), OptimizerCost(0))
    assert cost.backward_macs == network.backward_macs
    assert cost.flash_bytes == cost.weight_bytes


@settings(max_examples=50)
@given(networks(), st.data())
def test_costs_by_counts_agree_with_plans_and_never_fall(network: NetworkCosts, data: st.DataObject) -> None:
    accounting = ExactAccounting(network)
    counts: dict[int, int] = {}
    before = (accounting.memory_bytes(counts), accounting.backward_macs(counts))
    for _ in range(6):
        layer = data.draw(st.sampled_from(network.layers))
        if counts.get(layer.id, 0) == layer.channels:
            continue
        counts[layer.id] = counts.get(layer.id, 0) + 1
        after = (accounting.memory_bytes(counts), accounting.backward_macs(counts))
        assert before[0] <= after[0] and before[1] <= after[1]
        before = after
    with_planner = ExactAccounting(network, memory_of=lambda plan: plan_cost(network, plan).memory_bytes)
    assert with_planner.memory_bytes(counts) == accounting.memory_bytes(counts)
