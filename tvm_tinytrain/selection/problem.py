"""The selection problem as integers: candidates with sorted channels, costs, budgets.

Which channels a layer contributes is settled by their number: the top-k by quantised potential, ties to the
smaller channel index. So a solution is one count for each candidate layer, and everything about it follows
from the counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.config import Budget
from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection.accounting import Accounting
from tvm_tinytrain.selection.cost import LayerCost
from tvm_tinytrain.selection.fisher import FisherMap
from tvm_tinytrain.selection.integers import quantise

Counts = tuple[int, ...]
UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Budgets:
    """What a plan may cost: bytes of SRAM and multiply-accumulates of a backward pass; None is no limit."""

    memory_bytes: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("memory budget", self.memory_bytes), ("compute budget", self.macs)):
            if value is not None and not 0 <= value < UNLIMITED:
                hint = "give bytes and multiply-accumulates, or None for no limit"
                raise BudgetError("selection", name, value, f"0 to {UNLIMITED - 1}", hint)

    @staticmethod
    def of(budget: Budget, accounting: Accounting) -> Budgets:
        """Turn a configured budget into integers: the bytes of an arena within it; a compute fraction is of
        FullTrain's backward pass, rounded down (`config.Budget.macs_of`)."""
        return Budgets(budget.arena_bytes, budget.macs_of(accounting.full_macs))

    @property
    def memory_limit(self) -> int:
        """Bytes, UNLIMITED for None."""
        return UNLIMITED if self.memory_bytes is None else self.memory_bytes

    @property
    def macs_limit(self) -> int:
        """Multiply-accumulates, UNLIMITED for None."""
        return UNLIMITED if self.macs is None else self.macs


@dataclass(frozen=True)
class Candidate:
    """A layer that may be trained. ``order``: its channels by descending potential. ``potentials``: uint32
    in that order.

    ``usable``: channels with a potential above 0. ``prefix[k]``: summed potential of the first k, as
    int64[channels + 1]. ``bytes``, ``macs``: what one channel adds, both at least 0.
    """

    layer: LayerCost
    order: npt.NDArray[np.int64]
    potentials: npt.NDArray[np.uint32]
    prefix: npt.NDArray[np.int64]
    usable: int
    bytes: int
    macs: int

    @property
    def potential(self) -> int:
        """P, the sum over all channels."""
        return int(self.prefix[-1])


@dataclass(eq=False)
class Problem:
    """Candidates in ascending order of layer id, with costs and budgets. Costs are remembered by counts."""

    accounting: Accounting
    budgets: Budgets
    candidates: tuple[Candidate, ...]
    _memory: dict[Counts, int] = field(default_factory=dict, repr=False)

    @staticmethod
    def make(
        accounting: Accounting, fisher: FisherMap, budgets: Budgets, candidates: Iterable[int] | None = None
    ) -> Problem:
        """Quantise and sort the potentials of the candidate layers (default: all layers of the map).

        Raises PlanError where the map does not fit the network, BudgetError where not even the frozen
        network fits.
        """
        chosen = sorted(set(fisher if candidates is None else candidates))
        network = accounting.network
        for index in chosen:
            if len(fisher[index]) != network[index].channels:
                found = f"{len(fisher[index])} potentials"
                allowed = f"{network[index].channels}, one for each output channel"
                raise PlanError("selection", f"layer {index}", found, allowed, "the map is another network's")
        quantised = quantise({index: fisher[index] for index in chosen})
        made = tuple(_candidate(accounting, network[index], quantised[index]) for index in chosen)
        problem = Problem(accounting, budgets, made)
        frozen = problem.memory(problem.nothing)
        if frozen > budgets.memory_limit:
            hint = "raise the memory budget: the forward pass alone needs this much"
            raise BudgetError(
                "selection", "memory budget", f"{budgets.memory_bytes} bytes", f"{frozen} or more", hint
            )
        return problem

    @property
    def plans_costed(self) -> int:
        """How many different plans the memory was asked for."""
        return len(self._memory)

    @property
    def nothing(self) -> Counts:
        """The counts of the empty plan."""
        return (0,) * len(self.candidates)

    @cached_property
    def available(self) -> int:
        """Summed quantised potential of all candidates."""
        return sum(c.potential for c in self.candidates)

    def value(self, counts: Counts) -> int:
        """Summed quantised potential of the selected channels."""
        return sum(int(c.prefix[k]) for c, k in zip(self.candidates, counts, strict=True))

    def by_layer(self, counts: Counts) -> dict[int, int]:
        """{layer id: number of channels} of the layers that are trained."""
        return {c.layer.id: k for c, k in zip(self.candidates, counts, strict=True) if k}

    def memory(self, counts: Counts) -> int:
        """Bytes of the plan."""
        if counts not in self._memory:
            self._memory[counts] = self.accounting.memory_bytes(self.by_layer(counts))
        return self._memory[counts]

    def macs(self, counts: Counts) -> int:
        """Multiply-accumulates of the plan's backward pass."""
        return self.accounting.backward_macs(self.by_layer(counts))

    def feasible(self, counts: Counts) -> bool:
        """Whether the plan keeps both budgets; compute is asked first, it is cheap."""
        return (
            self.macs(counts) <= self.budgets.macs_limit and self.memory(counts) <= self.budgets.memory_limit
        )

    def plan(self, counts: Counts) -> UpdatePlan:
        """Train the weights, and the biases where there are any, of the top channels."""
        return UpdatePlan(
            tuple(
                LayerUpdate(
                    c.layer.id, tuple(sorted(c.order[:k].tolist())), bias=c.layer.biases_per_channel > 0
                )
                for c, k in zip(self.candidates, counts, strict=True)
                if k
            )
        )


def _candidate(accounting: Accounting, layer: LayerCost, potentials: npt.NDArray[np.uint32]) -> Candidate:
    order = np.argsort(-potentials.astype(np.int64), kind="stable")
    ranked = potentials[order]
    prefix = np.concatenate([np.zeros(1, np.int64), np.cumsum(ranked, dtype=np.int64)])
    usable = int(np.count_nonzero(ranked))
    return Candidate(
        layer, order, ranked, prefix, usable, accounting.channel_bytes(layer), accounting.channel_macs(layer)
    )
