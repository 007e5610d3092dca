"""What a plan costs, in two accountings with one interface: the paper's, and the exact one of the compiled
program.

Selection asks an `Accounting` four questions, all answered in integers. Costs depend on a plan only through
the *number* of trained output channels of each layer, `counts` = {layer id: channels}, and never fall when
a number rises: selection relies on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from tvm_tinytrain.config import SGD, Optimizer
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection.cost import FLOAT_BYTES, LayerCost, NetworkCosts
from tvm_tinytrain.selection.liveness import LiveBytes, live_bytes
from tvm_tinytrain.selection.paper import (
    paper_full_train_macs,
    paper_optimizer_bytes,
    paper_peak_bytes,
    trained_weights,
)

Counts = Mapping[int, int]
MemoryOf = Callable[[UpdatePlan], int]


class Accounting(Protocol):
    """Costs of training `counts` channels of each layer."""

    @property
    def network(self) -> NetworkCosts:
        """The layers."""

    @property
    def full_macs(self) -> int:
        """Multiply-accumulates of FullTrain's backward pass; a compute budget is a fraction of it."""

    def channel_bytes(self, layer: LayerCost) -> int:
        """Bytes that one more trained channel of the layer adds (a guide for the search, not a promise)."""

    def channel_macs(self, layer: LayerCost) -> int:
        """Multiply-accumulates that one more trained channel of the layer adds, exactly."""

    def memory_bytes(self, counts: Counts) -> int:
        """Bytes in all."""

    def backward_macs(self, counts: Counts) -> int:
        """Multiply-accumulates of the backward pass in all."""


@dataclass(frozen=True)
class OptimizerCost:
    """What training keeps for each trained parameter, in fp32 values beside the parameter itself.

    states: the optimizer's (0 plain SGD, 1 momentum, 2 Adam). accumulate: gradients are summed over samples
    before an update; otherwise the update happens where the gradient is computed, and no gradient outlives
    its kernel.
    """

    states: int = 2
    accumulate: bool = False

    @staticmethod
    def of(optimizer: Optimizer, *, accumulate: bool = False) -> OptimizerCost:
        """Read the costs off a configured optimizer."""
        states = (1 if optimizer.momentum else 0) if isinstance(optimizer, SGD) else 2
        return OptimizerCost(states, accumulate)

    @property
    def bytes_per_parameter(self) -> int:
        """Parameter, gradient where one is kept, states."""
        return FLOAT_BYTES * (1 + int(self.accumulate) + self.states)


@dataclass(frozen=True)
class PaperAccounting:
    """The paper's rules (see `paper`): no biases, constant forward peak, padding-blind dX chain."""

    network: NetworkCosts
    optimizer: str = "adam"

    @cached_property
    def _peak(self) -> int:
        return paper_peak_bytes(self.network)

    @property
    def full_macs(self) -> int:
        return paper_full_train_macs(self.network)

    def channel_bytes(self, layer: LayerCost) -> int:
        return paper_optimizer_bytes(layer.weights_per_channel, self.optimizer)

    def channel_macs(self, layer: LayerCost) -> int:
        return layer.forward_macs // layer.channels

    def memory_bytes(self, counts: Counts) -> int:
        return self._peak + sum(self.channel_bytes(self.network[i]) * k for i, k in counts.items())

    def backward_macs(self, counts: Counts) -> int:
        trained = [i for i, k in counts.items() if k]
        chain = sum(layer.forward_macs for layer in self.network.chain(trained))
        return chain + sum(self.channel_macs(self.network[i]) * counts[i] for i in trained)


@dataclass(frozen=True)
class ExactAccounting:
    """The compiled program: its kernels' multiply-accumulates, its bytes including biases, masks and saved
    inputs.

    memory_of: the planner, bytes of SRAM for a plan; it must not depend on *which* channels a layer trains,
    only on how many, and must not fall when channels are added. Without it the sum of live bytes
    (`liveness`) stands in, which no planner can beat.
    """

    network: NetworkCosts
    optimizer: OptimizerCost = OptimizerCost()
    memory_of: MemoryOf | None = None

    @property
    def full_macs(self) -> int:
        return self.network.backward_macs

    def channel_bytes(self, layer: LayerCost) -> int:
        return layer.parameters_per_channel * self.optimizer.bytes_per_parameter

    def channel_macs(self, layer: LayerCost) -> int:
        return layer.dw_macs_per_channel

    def memory_bytes(self, counts: Counts) -> int:
        trained = {i: counts[i] for i in sorted(counts) if counts[i]}
        if self.memory_of is not None:
            return self.memory_of(UpdatePlan(tuple(self._first(i, k) for i, k in trained.items())))
        kept = sum(self.channel_bytes(self.network[i]) * k for i, k in trained.items())
        return kept + live_bytes(self.network, {i: self.network[i].in_bytes for i in trained}).peak

    def backward_macs(self, counts: Counts) -> int:
        trained = [i for i, k in counts.items() if k]
        chain = sum(layer.dx_macs for layer in self.network.chain(trained))
        return chain + sum(self.network[i].dw_macs_per_channel * counts[i] for i in trained)

    def _first(self, layer: int, count: int) -> LayerUpdate:
        return LayerUpdate(layer, tuple(range(count)), bias=self.network[layer].biases_per_channel > 0)


@dataclass(frozen=True)
class PlanCost:
    """The exact costs of one plan, per sample. All `_bytes` in SRAM except flash_bytes.

    weight_bytes, gradient_bytes, state_bytes: the trained parameters, their summed gradients (0 when
    updates are fused) and the optimizer's states. live: activations, saved inputs and masks over the step.
    memory_bytes: what the budget is held against. flash_bytes: all parameters as constants.
    """

    forward_macs: int
    dx_macs: int
    dw_macs: int
    trained_parameters: int
    weight_bytes: int
    gradient_bytes: int
    state_bytes: int
    live: LiveBytes
    memory_bytes: int
    flash_bytes: int

    @property
    def backward_macs(self) -> int:
        """dX chain and dW."""
        return self.dx_macs + self.dw_macs


def plan_cost(
    network: NetworkCosts,
    plan: UpdatePlan,
    optimizer: OptimizerCost | None = None,
    memory_of: MemoryOf | None = None,
) -> PlanCost:
    """Cost a plan exactly, with input-channel lists and bias-only layers; PlanError for a foreign plan."""
    network.check(plan)
    optimizer = optimizer or OptimizerCost()
    parameters = dw = 0
    saved: dict[int, int] = {}
    for update in plan.layers:
        layer, weights = network[update.layer], trained_weights(network, update)
        parameters += weights + (len(update.outputs) * layer.biases_per_channel if update.bias else 0)
        dw += weights * (layer.dw_macs_per_channel // layer.weights_per_channel)
        columns = layer.inputs if update.inputs is None else len(update.inputs)
        saved[layer.id] = layer.in_bytes * columns // layer.inputs if update.weight else 0
    live = live_bytes(network, saved)
    kept = parameters * optimizer.bytes_per_parameter
    constants = sum(layer.weights + layer.biases_per_channel * layer.channels for layer in network)
    return PlanCost(
        forward_macs=network.forward_macs,
        dx_macs=sum(layer.dx_macs for layer in network.chain(plan)),
        dw_macs=dw,
        trained_parameters=parameters,
        weight_bytes=FLOAT_BYTES * parameters,
        gradient_bytes=FLOAT_BYTES * parameters * int(optimizer.accumulate),
        state_bytes=FLOAT_BYTES * parameters * optimizer.states,
        live=live,
        memory_bytes=memory_of(plan) if memory_of else kept + live.peak,
        flash_bytes=FLOAT_BYTES * constants,
    )
