"""An upper bound on the potential that a plan within the budgets can capture: how good a search could be."""

from __future__ import annotations

import numpy as np

from tvm_tinytrain.selection.problem import Problem

_DIRECTIONS = 129


def upper_bound(problem: Problem) -> float:
    """Bound Σ q over all plans by the fractional knapsack with one weighted budget, at the best of 129
    weightings.

    For each candidate as the earliest trained layer, budgets are reduced by what a plan with one channel of
    it costs beyond the per-channel costs. The bound holds where this overhead does not fall when channels
    are added, as with the paper's accounting and with the live bytes. Computed in float64, rounded up by
    1e-9 relative.
    """
    best = 0.0
    for d, earliest in enumerate(problem.candidates):
        start = tuple(int(i == d) for i in range(len(problem.candidates)))
        if not earliest.usable or not problem.feasible(start):
            continue
        room_bytes = problem.budgets.memory_limit - problem.memory(start) + earliest.bytes
        room_macs = problem.budgets.macs_limit - problem.macs(start) + earliest.macs
        behind = problem.candidates[d:]
        potential = np.concatenate([c.potentials for c in behind]).astype(np.float64)
        repeats = [len(c.potentials) for c in behind]
        share_bytes = np.repeat([c.bytes / max(1, room_bytes) for c in behind], repeats)
        share_macs = np.repeat([c.macs / max(1, room_macs) for c in behind], repeats)
        bounds = (_fractional(potential, a * share_bytes + (1 - a) * share_macs) for a in _weightings())
        best = max(best, min(bounds))
    return best * (1 + 1e-9)


def _weightings() -> list[float]:
    return [i / (_DIRECTIONS - 1) for i in range(_DIRECTIONS)]


def _fractional(potential: np.ndarray, share: np.ndarray) -> float:
    """The most potential with a summed share of at most 1, where the last channel may be taken in part."""
    order = np.argsort(-potential / np.maximum(share, 1e-300))
    used, gained = np.cumsum(share[order]), np.cumsum(potential[order])
    full = int(np.searchsorted(used, 1.0, side="right"))
    if full == len(order):
        return float(gained[-1])
    before, value = (used[full - 1], gained[full - 1]) if full else (0.0, 0.0)
    return float(value + potential[order[full]] * (1.0 - before) / share[order[full]])
