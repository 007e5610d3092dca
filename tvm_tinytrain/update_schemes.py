"""From what a user asks to be updated to an `UpdatePlan` of the network at hand."""

from __future__ import annotations

import tvm

from tvm_tinytrain.config import BiasOnly, FullTrain, LastLayer, SparseUpdate, lite_modules
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.rewriting import bindings, callee, operands
from tvm_tinytrain.passes.state import Layer, get_adapters, get_layers, get_values
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import LayerSpec, NetworkCosts, network_costs, sparse_update


def resolve_plan(update: object, mod: tvm.IRModule) -> UpdatePlan:
    """The plan that an update scheme means for the network of a module with ``predict`` and its table of layers.

    Raises PlanError where the network has no layer, or the scheme is none of those that can be resolved without samples.
    """
    layers = get_layers(mod)
    if not layers:
        raise PlanError(
            "update",
            "network",
            "no convolution or linear layer",
            "at least one",
            "train a network with layers",
        )
    if isinstance(update, UpdatePlan):
        return update
    if isinstance(update, FullTrain):
        return _whole(layers)
    if isinstance(update, LastLayer):
        return _whole(layers[-1:])
    if isinstance(update, BiasOnly):
        chosen = layers if update.last is None else layers[-update.last :]
        with_bias = [layer for layer in chosen if layer.bias is not None]
        if not with_bias:
            raise PlanError(
                "update", "BiasOnly", "no layer with a bias", "at least one", "train weights instead"
            )
        return UpdatePlan(
            tuple(LayerUpdate(la.id, tuple(range(la.channels)), weight=False) for la in with_bias)
        )
    if isinstance(update, SparseUpdate):
        values = get_values(mod)
        weights = {layer.id: values[layer.weight] for layer in layers}
        return sparse_update(describe_network(mod), update.scheme, weights, biases=update.biases)
    branches = lite_modules(update)
    if branches is not None:
        own = set(get_adapters(mod))
        last = layers[-1].weight if branches[0].last_layer else None
        return _whole(tuple(layer for layer in layers if layer.weight in own or layer.weight == last))
    allowed = (
        "FullTrain, LastLayer, BiasOnly, SparseUpdate, TinyTL, AdapterDrop, TaskAdaptive or an UpdatePlan"
    )
    raise PlanError("update", "update", type(update).__name__, allowed, "choose one of these")


def _whole(layers: tuple[Layer, ...]) -> UpdatePlan:
    return UpdatePlan(
        tuple(LayerUpdate(la.id, tuple(range(la.channels)), bias=la.bias is not None) for la in layers)
    )


def describe_network(mod: tvm.IRModule) -> NetworkCosts:
    """What the layers in ``predict`` cost; see `describe_layers`."""
    return network_costs(describe_layers(mod))


def describe_layers(mod: tvm.IRModule) -> tuple[LayerSpec, ...]:
    """Shapes and connections of the layers in ``predict``, for the cost model.

    A layer's sources are the layers whose outputs reach its input without passing another layer. A layer of a kind that the cost
    model does not describe (a transposed convolution) is an error of the cost model.
    """
    layers = {layer.weight: layer for layer in get_layers(mod)}
    reach: dict[object, frozenset[int]] = {}
    specs: dict[int, LayerSpec] = {}
    for b in bindings(mod["predict"]):
        inputs = [o for o in operands(b.value) if o in reach]
        behind = frozenset().union(*(reach[o] for o in inputs)) if inputs else frozenset()
        gv = callee(b.value)
        found = next((layers[o.name] for o in operands(b.value) if getattr(o, "name", None) in layers), None)
        if gv is None or found is None or kernel_kind(mod[gv]) is None:
            reach[b.var] = behind
            continue
        spec = kernel_spec(mod[gv])
        clamped = spec.get("low") is not None or spec.get("high") is not None
        if found.id not in specs:  # a shared weight is described by its first use
            specs[found.id] = LayerSpec.from_kernel(
                found.id,
                found.kind,
                spec,
                bias=found.bias is not None,
                activation=clamped,
                sources=tuple(sorted(behind)),
            )
        reach[b.var] = frozenset({found.id})
    return tuple(specs[i] for i in sorted(specs))
