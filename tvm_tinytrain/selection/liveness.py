"""Bytes that are live at each moment of a training step: the least that any memory plan of the step can have.

The step is the forward pass over all layers, then the backward pass from the last layer to the earliest
trained one. A layer computes while its input and its output are live. Beside them live, as long as they are
needed:

    saved input    of a layer whose weight is trained, until its dW
    mask           one bit per output of an activation, of every layer on the way back, until its dX or dW
    residual       the input of a block in the forward pass, its gradient in the backward pass

A saved input is the tensor that the layer reads, not a copy, so it is not counted twice. Weights, optimizer
states and gradients that outlive a step are not in here. Graphs that branch otherwise than by residuals
need the memory planner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm_tinytrain.selection.cost import NetworkCosts


@dataclass(frozen=True)
class LiveBytes:
    """Peaks of the two passes; saved_inputs and masks are what the forward pass hands over."""

    forward: int
    backward: int
    saved_inputs: int
    masks: int

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(self.forward, self.backward)


def live_bytes(network: NetworkCosts, saved: Mapping[int, int]) -> LiveBytes:
    """Count live bytes of a step that trains the layers `saved`: {layer id: bytes of its input that are
    kept for dW}.

    in_bytes where the whole input is kept, less where only some input channels are trained (they are copied
    out), 0 for a layer of which only the bias is trained.
    """
    earliest = min(saved, default=len(network))
    skips = [(layer.skip, layer.id) for layer in network if layer.skip is not None]
    forward = backward = kept = 0
    for layer in network:
        own = saved.get(layer.id, 0)
        copy = own if own < layer.in_bytes else 0
        mask = layer.mask_bytes if layer.id >= earliest else 0
        waiting = [start for start, end in skips if start < layer.id <= end]
        residual = sum(network[s].in_bytes for s in waiting if saved.get(s, 0) < network[s].in_bytes)
        forward = max(forward, kept + layer.in_bytes + copy + layer.out_bytes + mask + residual)
        kept += own + mask
    masks = sum(layer.mask_bytes for layer in network.layers[earliest:])
    for layer in reversed(network.layers[earliest:]):
        gradients = layer.out_bytes + (layer.in_bytes if layer.id > earliest else 0)
        residual = sum(network[s].in_bytes for s, end in skips if earliest < s <= layer.id < end)
        backward = max(backward, kept + gradients + residual)
        kept -= saved.get(layer.id, 0) + layer.mask_bytes
    return LiveBytes(forward, backward, sum(saved.values()), masks)
