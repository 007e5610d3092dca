"""Costs of layers are those of our kernels; the chain of input gradients follows the graph."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection.problems import backbone_costs, networks
from tvm_tinytrain.errors import PlanError, ShapeError
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_input_grad, conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import LayerSpec, NetworkCosts, layer_cost, network_costs

CONVOLUTIONS = [
    Conv2DSpec(3, 16, 16, 8, (3, 3), (2, 2), (1, 1, 1, 1)),
    Conv2DSpec(8, 9, 7, 8, (5, 5), (1, 1), (2, 2, 2, 2), groups=8),
    Conv2DSpec(8, 9, 7, 8, (3, 3), (2, 2), (1, 1, 1, 1), groups=8),
    Conv2DSpec(12, 5, 5, 6, (1, 1)),
    Conv2DSpec(4, 1, 20, 6, (1, 5), padding=(0, 2, 0, 2), dilation=(1, 2), groups=2),
    Conv2DSpec(4, 8, 8, 6, (3, 3)),
]


@pytest.mark.parametrize("spec", CONVOLUTIONS)
def test_costs_are_what_the_kernels_say_they_execute(spec: Conv2DSpec) -> None:
    cost = layer_cost(LayerSpec.from_kernel(0, "conv2d", asdict(spec), bias=True, activation=True))
    assert cost.forward_macs == spec.macs
    assert cost.dx_macs == kernel_spec(conv2d_input_grad(spec))["macs"]
    assert 3 * cost.dw_macs_per_channel == kernel_spec(conv2d_weight_grad(spec, channels=3))["macs"]
    assert (cost.channels, cost.inputs) == spec.weight_shape[:2]
    assert cost.weights == cost.channels * cost.weights_per_channel
    assert cost.out_bytes == 4 * spec.out_channels * spec.out_height * spec.out_width
    assert cost.depthwise == spec.depthwise


def test_linear_layer() -> None:
    spec = LinearSpec(2, 10, 4)
    cost = layer_cost(LayerSpec.from_kernel(3, "linear", asdict(spec), bias=False, activation=False))
    assert (cost.forward_macs, cost.dx_macs, cost.dw_macs_per_channel) == (80, 80, 20)
    assert (cost.weights, cost.channels, cost.biases_per_channel) == (40, 4, 0)
    assert (cost.in_bytes, cost.out_bytes, cost.mask_bytes) == (80, 32, 0)


def test_mask_has_one_bit_for_each_output() -> None:
    cost = layer_cost(LayerSpec(0, "conv2d", (1, 3, 3), (1, 3, 3), activation=True))
    assert cost.mask_bytes == 2


@pytest.mark.parametrize(
    ("name", "weights", "macs"),
    [
        ("mcunet", 463_216, 22_453_504),
        ("mobilenet_v2", 288_864, 17_449_728),
        ("proxyless_nas", 357_680, 19_209_728),
    ],
)
def test_backbones(name: str, weights: int, macs: int) -> None:
    """Kwon et al., ICML 2024, Table 4."""
    network = backbone_costs(name)
    assert (network.weights, network.forward_macs) == (weights, macs)
    assert (
        network.backward_macs == 2 * macs - network[0].forward_macs
    )  # 'same' padding: dX costs what forward does


def test_chain_of_a_sequence_is_everything_behind_the_earliest() -> None:
    network = backbone_costs("mcunet")
    assert [layer.id for layer in network.chain([40, 36])] == [37, 38, 39, 40, 41]
    assert network.chain([41]) == ()
    assert network.chain([]) == ()


def test_chain_of_a_branch_leaves_out_its_sibling() -> None:
    """0 → {1, 2} → 3, as in a fire module: training 1 needs dX of 3 but not of 2."""
    shape = (2, 4, 4)
    specs = [LayerSpec(i, "conv2d", shape, shape, sources=s) for i, s in enumerate([(), (0,), (0,), (1, 2)])]
    network = network_costs(specs)
    assert [layer.id for layer in network.chain([1])] == [3]
    assert [layer.id for layer in network.chain([2, 1])] == [3]
    assert [layer.id for layer in network.chain([0])] == [1, 2, 3]


@settings(max_examples=50)
@given(networks(), st.sets(st.integers(0, 5)))
def test_chain_is_reachability(network: NetworkCosts, trained: set[int]) -> None:
    trained = {layer for layer in trained if layer < len(network)}
    reached = set(trained)
    for layer in network:
        if reached & set(layer.sources):
            reached.add(layer.id)
    expected = {layer.id for layer in network if reached & set(layer.sources)}
    assert {layer.id for layer in network.chain(trained)} == expected


@settings(max_examples=30)
@given(networks())
def test_json_round_trip(network: NetworkCosts) -> None:
    assert NetworkCosts.from_json(network.to_json()) == network


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '[{"id": 0}]'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="json text"):
        NetworkCosts.from_json(text)


def test_last_layers_and_blocks() -> None:
    network = backbone_costs("mobilenet_v2")
    assert network.last(2) == (50, 51)
    assert network.last(1000) == tuple(range(52))
    assert network.last_blocks(1) == (48, 49, 50, 51)  # a block of three and the feature mix
    assert len(backbone_costs("mcunet").last_blocks(6)) == 18
    with pytest.raises(PlanError, match="blocks: found 18; allowed 1 to 17"):
        network.last_blocks(18)


def test_a_plan_of_another_network_is_refused() -> None:
    network = backbone_costs("mcunet")
    network.check(UpdatePlan.from_channels({41: [159]}))
    with pytest.raises(PlanError, match="channel 160; allowed 0 to 159"):
        network.check(UpdatePlan.from_channels({41: [160]}))
    with pytest.raises(PlanError, match="layer 42: found not in the network; allowed 0 to 41"):
        network.check(UpdatePlan.from_channels({42: [0]}))


def test_layers_must_be_in_order() -> None:
    shape = (2, 4, 4)
    with pytest.raises(PlanError, match="id 1"):
        network_costs([LayerSpec(1, "conv2d", shape, shape)])
    with pytest.raises(PlanError, match="sources"):
        network_costs([LayerSpec(0, "conv2d", shape, shape, sources=(0,))])


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="in 2 groups"):
        LayerSpec(0, "conv2d", (3, 4, 4), (4, 4, 4), groups=2)
    with pytest.raises(ShapeError, match="sizes of at least 1"):
        LayerSpec(0, "conv2d", (3, 0, 4), (4, 4, 4))
    with pytest.raises(ShapeError, match="'pool'; allowed conv2d or linear"):
        LayerSpec.from_kernel(0, "pool", {}, bias=False, activation=False)
