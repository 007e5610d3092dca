"""Resampling: other channels every few iterations, within the same budgets.

TraDy (Quélennec et al., 2025, arXiv 2510.19675) keeps the layers and draws their channels anew at random,
so that over time more of a layer is trained than fits at once. Here each layer keeps its *number* of
channels, so bytes and multiply-accumulates stay what the budget allowed. Optimizer states of a channel
start at zero when it enters.

The draw, for an implementation in C: the generator is `integers.SplitMix64`, seeded for each layer with
``seed ^ (round << 32) ^ layer``. The best `kept` channels of the original plan stay. Of the other m
channels, in ascending order, n are drawn: channel j (0-based among them) is taken when ``(draw · (m - j))
>> 32 < n - taken``, one draw for each channel that is asked. No array is needed and the result is
ascending.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection.cost import NetworkCosts
from tvm_tinytrain.selection.fisher import FisherMap
from tvm_tinytrain.selection.integers import SplitMix64


def resample(
    network: NetworkCosts,
    plan: UpdatePlan,
    seed: int,
    iteration_round: int,
    *,
    keep: Fraction = Fraction(0),
    potentials: FisherMap | None = None,
) -> UpdatePlan:
    """Draw the channels of round 1, 2, … anew; round 0 is the plan itself.

    keep: the share of a layer's channels, rounded down, that always stays: those of largest potential (ties
    to the smaller index), so `potentials` are needed when it is above 0. Raises PlanError for a share
    outside [0, 1], or without potentials, and for a foreign plan.
    """
    network.check(plan)
    share = Fraction(keep)
    if not 0 <= share <= 1 or (share and potentials is None):
        hint = "a share above 0 needs the potentials"
        raise PlanError("resampling", "keep", keep, "a share in [0, 1]", hint)
    if iteration_round == 0:
        return plan
    updates = []
    for update in plan.layers:
        fixed: set[int] = set()
        if potentials is not None:
            order = np.argsort(-potentials[update.layer][list(update.outputs)], kind="stable")
            count = len(order) * share.numerator // share.denominator
            fixed = {update.outputs[i] for i in order[:count]}
        rng = SplitMix64(seed ^ iteration_round << 32 ^ update.layer)
        free = [c for c in range(network[update.layer].channels) if c not in fixed]
        drawn = _draw(rng, free, len(update.outputs) - len(fixed))
        outputs = tuple(sorted(fixed | drawn))
        updates.append(LayerUpdate(update.layer, outputs, update.inputs, update.weight, update.bias))
    return UpdatePlan(tuple(updates))


def _draw(rng: SplitMix64, channels: list[int], wanted: int) -> set[int]:
    """Knuth's selection sampling (The Art of Computer Programming 2, 3.4.2 S) with integers."""
    taken: set[int] = set()
    for j, channel in enumerate(channels):
        if len(taken) == wanted:
            break
        if rng.draw() * (len(channels) - j) >> 32 < wanted - len(taken):
            taken.add(channel)
    return taken
