"""What each layer costs in training: multiply-accumulates and bytes, for one sample in fp32, exact integers.

`LayerCost` holds what our kernels execute. The forward pass and the weight gradient of an output channel
run over the padded input, so padding is counted. The input gradient gathers at stride 1 (every input
element sums over its taps) and scatters at larger strides (the multiply-accumulates of the forward pass);
see `passes/kernels/conv2d_grad.py`. Costs of a whole plan are made of these by `accounting` (exact) and by
`paper` (TinyTrain's rules).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection.network import LayerSpec

FLOAT_BYTES = 4


@dataclass(frozen=True)
class LayerCost:
    """Costs of one layer and one sample.

    weights: number of weights, bias not counted; channels: output channels, the unit of selection.
    weights_per_channel × channels = weights. inputs: input channels that one output channel reads.
    biases_per_channel: 1 with a bias, else 0.
    forward_macs, dx_macs: the forward pass, and the gradient with respect to the layer's input.
    dw_macs_per_channel: the gradient of one output channel's weights. in_bytes, out_bytes: fp32 activations.
    activation, block, skip, sources: as in `LayerSpec`, with `sources` made explicit.
    """

    id: int
    kind: str
    weights: int
    channels: int
    weights_per_channel: int
    inputs: int
    biases_per_channel: int
    forward_macs: int
    dx_macs: int
    dw_macs_per_channel: int
    in_bytes: int
    out_bytes: int
    groups: int
    depthwise: bool
    activation: bool
    block: int | None
    skip: int | None
    sources: tuple[int, ...]

    @property
    def pointwise(self) -> bool:
        """Whether it is a 1×1 convolution, and not a depthwise one."""
        return self.kind == "conv2d" and self.weights_per_channel == self.inputs and not self.depthwise

    @property
    def parameters_per_channel(self) -> int:
        """Weights and bias of one output channel."""
        return self.weights_per_channel + self.biases_per_channel

    @property
    def mask_bytes(self) -> int:
        """Bytes of the one-bit mask of the activation behind the layer, 0 without one."""
        return (self.out_bytes // FLOAT_BYTES + 7) // 8 if self.activation else 0


def layer_cost(spec: LayerSpec) -> LayerCost:
    """Derive the costs of a layer from its shapes."""
    (ci, height, width), (co, out_height, out_width) = spec.in_shape, spec.out_shape
    taps = spec.kernel[0] * spec.kernel[1]
    per_channel = ci // spec.groups * taps
    per_channel_macs = per_channel * out_height * out_width
    forward = co * per_channel_macs
    gathered = ci * height * width * (co // spec.groups) * taps
    before = () if spec.id == 0 else (spec.id - 1,)
    return LayerCost(
        id=spec.id,
        kind=spec.kind,
        weights=co * per_channel,
        channels=co,
        weights_per_channel=per_channel,
        inputs=ci // spec.groups,
        biases_per_channel=int(spec.bias),
        forward_macs=forward,
        dx_macs=gathered if spec.stride == (1, 1) else forward,
        dw_macs_per_channel=per_channel_macs,
        in_bytes=FLOAT_BYTES * ci * height * width,
        out_bytes=FLOAT_BYTES * co * out_height * out_width,
        groups=spec.groups,
        depthwise=spec.groups == ci == co and spec.groups > 1,
        activation=spec.activation,
        block=spec.block,
        skip=spec.skip,
        sources=before if spec.sources is None else spec.sources,
    )


@dataclass(frozen=True)
class NetworkCosts:
    """The cost table of a network: `layers[i].id == i`, in order of execution.

    Raises PlanError where ids have gaps or a layer names a later layer as its source.
    """

    layers: tuple[LayerCost, ...]

    def __post_init__(self) -> None:
        for position, layer in enumerate(self.layers):
            if layer.id != position or any(not 0 <= s < position for s in layer.sources):
                raise PlanError(
                    "cost model",
                    f"layer at position {position}",
                    f"id {layer.id}, sources {layer.sources}",
                    f"id {position} and sources before it",
                    "list the layers in order of execution",
                )

    def __getitem__(self, layer: int) -> LayerCost:
        """Return the costs of a layer; PlanError when there is no such layer."""
        if not 0 <= layer < len(self.layers):
            hint = "use ids of this network's layers"
            raise PlanError(
                "cost model", f"layer {layer!r}", "not in the network", f"0 to {len(self) - 1}", hint
            )
        return self.layers[layer]

    def __iter__(self) -> Iterator[LayerCost]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @cached_property
    def weights(self) -> int:
        """Number of weights of all layers, biases not counted."""
        return sum(layer.weights for layer in self.layers)

    @cached_property
    def forward_macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(layer.forward_macs for layer in self.layers)

    @cached_property
    def backward_macs(self) -> int:
        """Multiply-accumulates of a full backward pass: dW of all layers, dX of all behind another layer."""
        dx = sum(layer.dx_macs for layer in self.layers if layer.sources)
        return dx + sum(layer.dw_macs_per_channel * layer.channels for layer in self.layers)

    @cached_property
    def downstream(self) -> tuple[int, ...]:
        """For each layer a bit mask: bit j is set when layer j lies behind it (training it needs dX of j)."""
        masks = [0] * len(self.layers)
        for layer in reversed(self.layers):
            for source in layer.sources:
                masks[source] |= masks[layer.id] | 1 << layer.id
        return tuple(masks)

    def chain(self, trained: Iterable[int]) -> tuple[LayerCost, ...]:
        """Return the layers whose input gradient is needed to train the given ones, in order of execution."""
        mask = 0
        for layer in trained:
            mask |= self.downstream[self[layer].id]
        return tuple(layer for layer in self.layers if mask >> layer.id & 1)

    def last(self, count: int) -> tuple[int, ...]:
        """Return the ids of the last `count` layers (of all, where there are fewer)."""
        return tuple(range(max(0, len(self.layers) - count), len(self.layers)))

    def last_blocks(self, count: int) -> tuple[int, ...]:
        """Return the ids of the last `count` blocks and of what follows them; a lone feature mix is no block.

        Raises PlanError where the description names no blocks.
        """
        sizes: dict[int, int] = {}
        for layer in self.layers:
            if layer.block is not None:
                sizes[layer.block] = sizes.get(layer.block, 0) + 1
        blocks = sorted(block for block, size in sizes.items() if size > 1)
        if not 1 <= count <= len(blocks):
            raise PlanError("cost model", "blocks", count, f"1 to {len(blocks)}", "count layers with `last`")
        first = min(layer.id for layer in self.layers if layer.block == blocks[-count])
        return tuple(range(first, len(self.layers)))

    def check(self, plan: UpdatePlan) -> None:
        """Raise PlanError where the plan names a layer or a channel that the network does not have."""
        for update in plan.layers:
            layer = self[update.layer]
            for axis, channels, limit in (
                ("outputs", update.outputs, layer.channels),
                ("inputs", update.inputs or (0,), layer.inputs),
            ):
                if channels[-1] >= limit:
                    raise PlanError(
                        "cost model",
                        f"{axis} of layer {layer.id}",
                        f"channel {channels[-1]}",
                        f"0 to {limit - 1}",
                        "the plan belongs to another network",
                    )

    def to_json(self) -> str:
        """Return the canonical text: sorted keys, no white space."""
        return json.dumps([asdict(layer) for layer in self.layers], sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> NetworkCosts:
        """Read what `to_json` wrote. Raises PlanError for anything else."""
        try:
            rows = [{**row, "sources": tuple(row["sources"])} for row in json.loads(text)]
            return cls(tuple(LayerCost(**row) for row in rows))
        except (ValueError, TypeError, KeyError) as error:
            hint = "pass a text written by NetworkCosts.to_json"
            raise PlanError("cost model", "json text", error, "a list of layers", hint) from error


def network_costs(specs: Iterable[LayerSpec]) -> NetworkCosts:
    """Make the cost table of a network from its layers in order of execution."""
    return NetworkCosts(tuple(layer_cost(spec) for spec in specs))
