"""The multiply-accumulates that a compiled program executes for one sample, exactly.

`cost` counts by the convention of the field, taps in the padding included, and a plan's channels once: that is what budgets are
held against. The program differs in three ways, all of them described here and measured by an instrumented build
(``Instruments(count_macs=True)``):

* Kernels leave out taps that would read the padding. Only depthwise convolutions of stride one (forward and input gradient), blocks
  that stream, and input gradients that scatter (stride and dilation together) go over it.
* Of a layer whose output channels are trained in part, the trained rows live in RAM beside the whole weight in flash. They are
  computed again after the forward kernel; in the dX chain a depthwise row is computed again, a dense one adds its difference.
* Layers trained by input channel, and convolutions that are not depthwise and have groups, or stride and dilation together, are not
  split so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection.cost import layer_cost, network_costs
from tvm_tinytrain.selection.network import LayerSpec


@dataclass(frozen=True)
class CompiledMacs:
    """Multiply-accumulates of one training step: forward pass, input gradients, weight gradients.

    rows: of ``forward`` and ``dx``, those that the trained rows of partly trained layers add.
    """

    forward: int
    dx: int
    dw: int
    rows: int

    @property
    def step(self) -> int:
        """All of a step."""
        return self.forward + self.dx + self.dw


def compiled_macs(
    layers: Sequence[LayerSpec], plan: UpdatePlan, streamed: Collection[int] = ()
) -> CompiledMacs:
    """Count what the program for ``plan`` executes in ``step`` (``forward`` alone is ``predict``).

    layers: the network, each layer applied once. streamed: ids of the layers inside of blocks that stream in this entry.
    Raises PlanError for a plan of another network.
    """
    network = network_costs(layers)
    network.check(plan)
    updates = {update.layer: update for update in plan.layers}
    chain = {layer.id for layer in network.chain(plan)}
    forward = dx = dw = rows = 0
    for spec in layers:
        update = updates.get(spec.id)
        count, inputs = trained_rows(spec, update), spec.in_shape[0] // spec.groups
        again = count * inputs * taps_inside(spec)
        once = layer_cost(spec).forward_macs if spec.id in streamed else executed_forward(spec)
        forward += again + once
        rows += again
        if spec.id in chain:
            correction = count * executed_dx_row(spec)
            dx += correction + executed_dx(spec)
            rows += correction
        if update is not None and update.weight:
            columns = inputs if update.inputs is None else len(update.inputs)
            dw += len(update.outputs) * columns * taps_inside(spec)
    return CompiledMacs(forward, dx, dw, rows)


def trained_rows(spec: LayerSpec, update: LayerUpdate | None) -> int:
    """The rows that lie compact in RAM beside the layer's weight in flash; 0 where the layer is not split."""
    if update is None or not update.weight or len(update.outputs) == spec.out_shape[0]:
        return 0
    if update.inputs is not None and len(update.inputs) < spec.in_shape[0] // spec.groups:
        return 0
    splits = _depthwise(spec) or (spec.groups == 1 and not _scatters(spec))
    return len(update.outputs) if splits else 0


def taps_inside(spec: LayerSpec) -> int:
    """Pairs of an output position and a tap of the window that lie inside of the input."""
    return _inside(spec, 0) * _inside(spec, 1)


def executed_forward(spec: LayerSpec) -> int:
    """Multiply-accumulates of the layer's forward kernel."""
    if _depthwise(spec) and spec.stride == (1, 1):
        return layer_cost(spec).forward_macs
    return spec.out_shape[0] * (spec.in_shape[0] // spec.groups) * taps_inside(spec)


def executed_dx(spec: LayerSpec) -> int:
    """Multiply-accumulates of the kernel of the input's gradient."""
    if _scatters(spec) or (_depthwise(spec) and spec.stride == (1, 1)):
        return layer_cost(spec).dx_macs
    return executed_forward(spec)


def executed_dx_row(spec: LayerSpec) -> int:
    """Multiply-accumulates that one trained row adds to the kernels of the input's gradient."""
    if _depthwise(spec) and _scatters(spec):
        return layer_cost(spec).forward_macs // spec.out_shape[0]
    return spec.in_shape[0] // spec.groups * taps_inside(spec)


def _scatters(spec: LayerSpec) -> bool:
    return any(s > 1 and d > 1 for s, d in zip(spec.stride, spec.dilation, strict=True))


def _depthwise(spec: LayerSpec) -> bool:
    return spec.groups == spec.in_shape[0] == spec.out_shape[0] and spec.groups > 1


def _inside(spec: LayerSpec, axis: int) -> int:
    size, outputs = spec.in_shape[1 + axis], spec.out_shape[1 + axis]
    first = [i * spec.stride[axis] - spec.padding[axis] for i in range(outputs)]
    taps = [k * spec.dilation[axis] for k in range(spec.kernel[axis])]
    return sum(0 <= place + tap < size for place in first for tap in taps)
