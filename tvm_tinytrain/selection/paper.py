"""TinyTrain's own accounting of memory and compute (Kwon et al., ICML 2024, Tables 2, 7 and 11).

The paper describes it in Appendices A.4, E.4 and F; the formulas below were recovered from its tables and
reproduce them to 2 or 3 digits. What it leaves out, they leave out: biases, batch-norm parameters, the
input gradient's padding.

* memory = peak of the forward pass, max over layers of (input + output / groups), + the optimizer's share:
  weight, gradient and states of each *trained* weight. Frozen weights lie in flash. Saved inputs and masks
  reuse the forward buffer.
* FullTrain's memory at batch N = N × (inputs of all convolutions, batch norms and ReLUs, fp32) + the
  optimizer's share of all weights + N × (input + output of the last convolution).
* compute = backward pass only: forward MACs of all layers after the earliest trained one (the dX chain) + the
  trained share of each trained layer's MACs (dW). FullTrain = 2 × forward, with the first layer's dX.
* saved activations of a range of layers (Table 11) = their inputs in fp32 + one bit for each ReLU output.
"""

from __future__ import annotations

from collections.abc import Iterable

from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection.cost import FLOAT_BYTES, NetworkCosts

OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "adam": 2}
"""Values that an optimizer keeps for each trained weight; the paper uses plain SGD and Adam."""


def trained_weights(network: NetworkCosts, update: LayerUpdate) -> int:
    """Number of weights that a layer's update trains; 0 for a bias-only update."""
    layer = network[update.layer]
    if not update.weight:
        return 0
    columns = layer.inputs if update.inputs is None else len(update.inputs)
    return len(update.outputs) * (layer.weights_per_channel // layer.inputs) * columns


def paper_trained_weights(network: NetworkCosts, plan: UpdatePlan) -> int:
    """Number of weights that the plan trains."""
    network.check(plan)
    return sum(trained_weights(network, update) for update in plan.layers)


def paper_peak_bytes(network: NetworkCosts) -> int:
    """Bytes of the forward pass's peak buffer, batch 1."""
    return max(layer.in_bytes + layer.out_bytes // layer.groups for layer in network)


def paper_optimizer_bytes(weights: int, optimizer: str = "adam") -> int:
    """Bytes of weight, gradient and states of `weights` trained weights: 16 each with Adam, 8 with SGD."""
    return FLOAT_BYTES * (2 + OPTIMIZER_STATES[optimizer]) * weights


def paper_memory_bytes(network: NetworkCosts, plan: UpdatePlan, optimizer: str = "adam") -> int:
    """Bytes that the paper counts for a plan at batch 1."""
    share = paper_optimizer_bytes(paper_trained_weights(network, plan), optimizer)
    return paper_peak_bytes(network) + share


def paper_full_train_bytes(network: NetworkCosts, batch: int = 100, optimizer: str = "adam") -> int:
    """Bytes that the paper counts for FullTrain; it uses batch 100 there."""
    convolutions = sum(layer.in_bytes for layer in network)
    batch_norms = sum(layer.out_bytes for layer in network)
    activations = sum(layer.out_bytes for layer in network if layer.activation)
    last = network.layers[-1]
    kept = batch * (convolutions + batch_norms + activations + last.in_bytes + last.out_bytes)
    return kept + paper_optimizer_bytes(network.weights, optimizer)


def paper_backward_macs(network: NetworkCosts, plan: UpdatePlan) -> int:
    """Multiply-accumulates that the paper counts for the backward pass of a plan."""
    network.check(plan)
    chain = sum(layer.forward_macs for layer in network.chain(plan))
    return chain + sum(_dw_macs(network, update) for update in plan.layers)


def _dw_macs(network: NetworkCosts, update: LayerUpdate) -> int:
    layer = network[update.layer]
    return trained_weights(network, update) * (layer.forward_macs // layer.weights)


def paper_full_train_macs(network: NetworkCosts) -> int:
    """MACs that the paper counts for FullTrain's backward pass; compute budgets are fractions of it."""
    return 2 * network.forward_macs


def paper_saved_activation_bytes(network: NetworkCosts, layers: Iterable[int]) -> int:
    """Bytes that a Fisher pass over these layers keeps: inputs in fp32, one bit per ReLU output."""
    chosen = [network[layer] for layer in layers]
    return sum(layer.in_bytes + layer.mask_bytes for layer in chosen)
