"""Static policies, from a cost table to an `UpdatePlan`: who is updated without looking at the task."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection.cost import LayerCost, NetworkCosts
from tvm_tinytrain.selection.schemes import SCHEMES, SparseScheme

Weights = Mapping[int, npt.NDArray[np.float32]]


def full_train(network: NetworkCosts) -> UpdatePlan:
    """Weight and bias of every channel of every layer."""
    return train_layers(network, tuple(range(len(network))))


def last_layer(network: NetworkCosts) -> UpdatePlan:
    """Weight and bias of the last layer; TinyTrain means the last convolution (ProtoNet has no classifier)."""
    return train_layers(network, network.last(1))


def train_layers(network: NetworkCosts, layers: tuple[int, ...]) -> UpdatePlan:
    """Weight and bias of all channels of the given layers."""
    return UpdatePlan(tuple(_whole(network[layer], bias=True) for layer in layers))


def bias_only(network: NetworkCosts, last: int | None = None) -> UpdatePlan:
    """The biases of the last `last` layers (default: of all); layers without a bias are left out."""
    layers = network.last(len(network) if last is None else last)
    return UpdatePlan(tuple(_biases(network[i]) for i in layers if network[i].biases_per_channel))


def find_scheme(name: str) -> SparseScheme:
    """The scheme of that name; PlanError where there is none."""
    if not isinstance(name, str) or name not in SCHEMES:
        raise PlanError("sparse update", "scheme", repr(name), ", ".join(SCHEMES), "choose one of these")
    return SCHEMES[name]


def sparse_update(
    network: NetworkCosts, scheme: str, weights: Weights | None = None, *, biases: bool = False
) -> UpdatePlan:
    """One of MIT's static schemes.

    Parameters
    ----------
    network
        The backbone that the scheme was made for; a final 1×1 convolution and a classifier may follow and
        stay frozen.
    scheme
        A key of `SCHEMES`, e.g. "mcunet-99kb".
    weights
        {layer: weight[out, in / groups, kh, kw]} of the pretrained network, for the layers that are trained in
        part: the input channels of largest norm are trained ("magnitude+"). Without it the first ones are: the costs are the same.
    biases
        Also train the biases of the last convolutions as MIT does. TinyTrain's cost tables do not count them.

    Raises PlanError for an unknown scheme and for a network that is too short.
    """
    found = find_scheme(scheme)
    if len(network) < found.layers:
        allowed = f"at least {found.layers}"
        raise PlanError("sparse update", scheme, f"{len(network)} layers", allowed, "use its own backbone")
    bias_layers = set(range(found.layers - found.biases, found.layers)) if biases else set()
    updates = []
    for index in sorted(bias_layers | set(found.weights)):
        layer, bias = network[index], index in bias_layers and network[index].biases_per_channel > 0
        if index not in found.weights:
            updates.extend([_biases(layer)] if bias else [])
        else:
            updates.append(_share(layer, found.weights[index], weights, bias=bias))
    return UpdatePlan(tuple(updates))


def _whole(layer: LayerCost, *, bias: bool) -> LayerUpdate:
    return LayerUpdate(layer.id, tuple(range(layer.channels)), bias=bias and layer.biases_per_channel > 0)


def _biases(layer: LayerCost) -> LayerUpdate:
    return LayerUpdate(layer.id, tuple(range(layer.channels)), weight=False, bias=True)


def _share(layer: LayerCost, share: Fraction, weights: Weights | None, *, bias: bool) -> LayerUpdate:
    """Train the weights of a share of the input channels; in a depthwise layer, of its channels."""
    total = layer.channels if layer.depthwise else layer.inputs
    count = max(1, total * share.numerator // share.denominator)
    if count == total:
        return _whole(layer, bias=bias)
    chosen = tuple(range(count))
    if weights is not None:
        chosen = _largest(weights[layer.id], count, depthwise=layer.depthwise)
    if layer.depthwise:
        return LayerUpdate(layer.id, chosen, bias=bias)
    return LayerUpdate(layer.id, tuple(range(layer.channels)), chosen, bias=bias)


def _largest(weight: npt.NDArray[np.float32], count: int, *, depthwise: bool) -> tuple[int, ...]:
    axes = tuple(i for i in range(weight.ndim) if i != (0 if depthwise else 1))
    norms = np.square(weight.astype(np.float64)).sum(axis=axes)
    return tuple(sorted(np.argsort(-norms, kind="stable")[:count].tolist()))
