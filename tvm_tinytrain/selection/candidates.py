"""Which layers may be trained at all: by their place in the network, and by what they do in their block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from tvm_tinytrain.errors import PlanError

LayerKind = Literal["all", "expansions", "auto"]
LAYER_KINDS: tuple[str, ...] = get_args(LayerKind)


class BlockLayer(Protocol):
    """What is asked of a layer: a compiled module's, or a cost table's. pointwise: a 1×1 convolution."""

    @property
    def id(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def depthwise(self) -> bool: ...
    @property
    def pointwise(self) -> bool: ...


def expansion_of(layers: Sequence[BlockLayer], depthwise: int) -> int | None:
    """Position of the 1×1 convolution that widens the input of the depthwise convolution at this position, if there is one.

    A 1×1 convolution between two depthwise ones ends a block that has no expansion (MobileNetV1), and is none.
    """
    before = layers[depthwise - 1] if depthwise else None
    if before is None or not before.pointwise or before.channels != layers[depthwise].channels:
        return None
    return None if depthwise > 1 and layers[depthwise - 2].depthwise else depthwise - 1


def block_starts(layers: Sequence[BlockLayer]) -> list[int]:
    """Positions where blocks begin: a depthwise convolution, or its expansion."""
    starts = []
    for i, layer in enumerate(layers):
        if layer.depthwise:
            expansion = expansion_of(layers, i)
            starts.append(i if expansion is None else expansion)
    return starts


def expansions(layers: Sequence[BlockLayer]) -> tuple[int, ...]:
    """Ids of the first 1×1 convolutions of all inverted bottlenecks: those that widen the block's input."""
    found = (expansion_of(layers, i) for i, layer in enumerate(layers) if layer.depthwise)
    return tuple(layers[i].id for i in found if i is not None)


def of_kind(kind: LayerKind, layers: Sequence[BlockLayer], chosen: Sequence[int]) -> tuple[int, ...]:
    """Those of the chosen ids that are of this kind.

    "all" of them; the "expansions" among them; "auto": the expansions, or all where there is none. Ids of no layer are kept:
    who looks them up refuses them. Raises PlanError where expansions were asked for and there is none.
    """
    known = {layer.id for layer in layers}
    among = frozenset(expansions(layers)) & frozenset(chosen) if kind != "all" else frozenset()
    if kind == "expansions" and not among:
        hint = 'take layer_kind="all", or "auto"'
        found = f"no expansion among layers {', '.join(map(str, chosen))}"
        raise PlanError("selection", "layer_kind", found, "layers with inverted bottlenecks among them", hint)
    return tuple(i for i in chosen if not among or i in among or i not in known)
