"""TinyTL and AdapterDrop: small side branches are trained, the backbone stays frozen.

TinyTL (Cai et al., NeurIPS 2020) adds to each block a *lite residual*: average pooling by 2 → grouped k×k
convolution with the block's stride → batch norm, ReLU → 1×1 convolution → upsampling to the block's output,
to which it is added. AdapterDrop (Rücklé et al., EMNLP 2021) leaves out the first ones, so that the
backward pass ends earlier. This module says *where* adapters are and what they cost; putting them into a
network is the model's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.selection.cost import LayerCost, layer_cost
from tvm_tinytrain.selection.network import LayerSpec


@dataclass(frozen=True)
class Adapter:
    """The lite residual of one block, from the block's input (channels, height, width) to its output.

    kernel, groups: of the first convolution, which keeps the number of channels. pool: factor of the
    average pooling.
    """

    block: int
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: int = 5
    groups: int = 2
    pool: int = 2

    @property
    def layers(self) -> tuple[LayerSpec, LayerSpec]:
        """Its two convolutions, ids 0 and 1."""
        channels, height, width = self.in_shape
        pooled = (channels, -(-height // self.pool), -(-width // self.pool))
        stride = height // self.out_shape[1]
        inner = (channels, -(-pooled[1] // stride), -(-pooled[2] // stride))
        out = (self.out_shape[0], *inner[1:])
        first = LayerSpec(
            0, "conv2d", pooled, inner, (self.kernel,) * 2, (stride,) * 2, self.groups, activation=True
        )
        return first, LayerSpec(1, "conv2d", inner, out)

    @property
    def costs(self) -> tuple[LayerCost, ...]:
        """Costs of the two convolutions."""
        return tuple(layer_cost(spec) for spec in self.layers)


def lite_residuals(
    network: Sequence[LayerSpec],
    drop: Fraction = Fraction(0),
    *,
    kernel: int = 5,
    groups: int = 2,
    pool: int = 2,
) -> tuple[Adapter, ...]:
    """Place TinyTL's adapters on all blocks of a backbone, or AdapterDrop's on all but the first share.

    network: a description with blocks; a lone feature mix is no block. drop: 0 is TinyTL; 1/4, 1/2, 3/4 are
    the paper's AdapterDrop-25, -50, -75; ⌊share · blocks⌋ adapters are dropped. Raises PlanError for a
    share outside [0, 1).
    """
    share = Fraction(drop)
    if not 0 <= share < 1:
        raise PlanError("adapters", "drop", drop, "a share of at least 0, below 1", "0 is TinyTL")
    blocks: dict[int, list[LayerSpec]] = {}
    for spec in network:
        if spec.block is not None:
            blocks.setdefault(spec.block, []).append(spec)
    whole = [(index, layers) for index, layers in sorted(blocks.items()) if len(layers) > 1]
    if not whole:
        hint = "describe the network with blocks"
        raise PlanError("adapters", "blocks", "none", "a backbone of blocks", hint)
    first = len(whole) * share.numerator // share.denominator
    return tuple(
        Adapter(index, layers[0].in_shape, layers[-1].out_shape, kernel, groups, pool)
        for index, layers in whole[first:]
    )
