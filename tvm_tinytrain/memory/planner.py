"""Turn a memory problem into a memory plan: first fit, then exact search towards the lower bound."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import gcd

from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.memory.greedy import align_up, first_fit, orders
from tvm_tinytrain.memory.lower_bound import Peak, lower_bound_peak
from tvm_tinytrain.memory.search import Search
from tvm_tinytrain.memory.timeline import Timeline
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem


@dataclass(frozen=True)
class Effort:
    """How much the planner may search, in *dives*: the work of placing every buffer of the problem once.

    A dive takes some 10 ms where 20 of 200 buffers are live at a time, 150 ms where 70 are; it is counted in
    inspected buffers and not in seconds, so that the plan is the same on every machine.
    fit: dives to get under the problem's capacity, where first fit does not.
    improve: dives to come from there closer to the lower bound.
    gap: the search for less ends when peak <= lower_bound * (1 + gap).
    """

    fit: int = 400
    improve: int = 100
    gap: float = 1e-5

    def __post_init__(self) -> None:
        if self.fit < 0 or self.improve < 0 or self.gap < 0:
            raise PlanError(
                "plan memory", "effort", f"{self}", "fields >= 0", "use GREEDY, NORMAL or THOROUGH"
            )


GREEDY = Effort(fit=0, improve=0)
NORMAL = Effort()
THOROUGH = Effort(improve=1000)

_FIRST_LIMIT = 5  # dives of the first six searches; each further round of six may take four times as many
_SHUFFLE = (3, 10, 30)


@dataclass
class _Attempt:
    """The state of one call: the best offsets so far, and what is known to be impossible."""

    buffers: Sequence[Buffer]
    timeline: Timeline
    orders: list[list[int]]
    offsets: list[int]
    impossible: int  # no placement has a peak of this or less
    peak: int = field(init=False)
    search: Search = field(init=False)
    dive: int = field(init=False)  # work of placing every buffer once

    def __post_init__(self) -> None:
        self.peak = self._peak(self.offsets)
        self.search = Search(self.buffers, self.timeline)
        self.dive = max(2000, sum(len(cover) ** 2 for cover in self.timeline.cover))

    def _peak(self, offsets: list[int]) -> int:
        return max((at + b.size for at, b in zip(offsets, self.buffers, strict=True)), default=0)

    def take(self, offsets: list[int]) -> None:
        """Keep the offsets if they are better than the best so far."""
        peak = self._peak(offsets)
        if peak < self.peak:
            self.offsets, self.peak = offsets, peak

    def reach(self, capacity: int, work: int) -> int:
        """Search for a peak <= capacity with restarts; returns what is left of `work`."""
        for limit, rank in self._restarts():
            if work <= 0 or self.peak <= capacity or capacity <= self.impossible:
                break
            outcome = self.search.run(capacity, rank, min(limit, work))
            work -= outcome.work
            if outcome.offsets is not None:
                self.take(outcome.offsets)
            elif outcome.exhausted:
                self.impossible = capacity
        return work

    def _restarts(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (limit, rank of each buffer) for ever: the first three orders as they are, then shuffled, both
        with the same limit, and again with four times that."""
        for turn in count():
            for order in self.orders[:3]:
                rng = random.Random(turn)
                noise = _SHUFFLE[turn // 2 % 3] if turn % 2 else 0
                place = {b: index + rng.random() * noise for index, b in enumerate(order)}
                rank = [0] * len(order)
                for index, b in enumerate(sorted(order, key=place.__getitem__)):
                    rank[b] = index
                yield self.dive * _FIRST_LIMIT << turn // 2 * 2, rank


def plan_memory(problem: MemoryProblem, *, effort: Effort = NORMAL) -> MemoryPlan:
    """Place the buffers of a problem; the same plan for the same problem on every machine.

    Returns offsets in the order of the problem's buffers, each a multiple of the buffer's alignment, with the
    peak as low as the effort allows; `plan.peak == plan.lower_bound` proves that no other plan is better.
    Raises BudgetError when the capacity is too small or too fragmented for what was found, naming the buffers
    live at the peak and the bytes over; PlanError when buffers with fixed offsets clash.
    """
    buffers, capacity = problem.buffers, problem.capacity
    bound = lower_bound_peak(problem)
    if capacity is not None and bound.bytes > capacity:
        raise _over_budget(bound, capacity, bound.bytes, "no placement can need less")
    _check_fixed(buffers)
    attempt = _first_attempt(_merge_fixed(buffers), bound.bytes)
    if capacity is not None and attempt.peak > capacity:
        attempt.reach(capacity, effort.fit * attempt.dive)
        if attempt.peak > capacity:
            _improve(attempt, bound.bytes, effort)  # the error says how little would do
            proof = "proved by search" if attempt.impossible >= capacity else "the best plan found"
            raise _over_budget(bound, capacity, attempt.peak, proof)
    _improve(attempt, bound.bytes, effort)
    places = {buffer.name: at for buffer, at in zip(attempt.buffers, attempt.offsets, strict=True)}
    offsets = tuple((b.name, places[b.name] if b.offset is None else b.offset) for b in buffers)
    return MemoryPlan(offsets, attempt.peak, bound.bytes)


def _merge_fixed(buffers: Sequence[Buffer]) -> list[Buffer]:
    """Make one of fixed buffers that touch and live equally long, so that many of them cost no search.

    Bytes between two of them that are too few for any buffer's alignment count as theirs.
    """
    align = min((buffer.align for buffer in buffers), default=1)
    fixed = sorted((b.lower, b.upper, b.offset, b.name, b) for b in buffers if b.offset is not None)
    merged: list[tuple[int, Buffer]] = []
    for lower, upper, at, _, buffer in fixed:
        start, last = merged[-1] if merged else (at, buffer)
        same_life = bool(merged) and (last.lower, last.upper) == (lower, upper)
        if same_life and at <= align_up(start + last.size, align):
            merged[-1] = start, replace(last, size=at + buffer.size - start)
        else:
            merged.append((at, buffer))
    return [buffer for buffer in buffers if buffer.offset is None] + [buffer for _, buffer in merged]


def _first_attempt(buffers: Sequence[Buffer], bound: int) -> _Attempt:
    timeline = Timeline.of(buffers)
    candidates = list(orders(timeline))
    attempt = _Attempt(buffers, timeline, candidates, first_fit(buffers, candidates[0]), bound - 1)
    for order in candidates[1:]:
        if attempt.peak > bound:
            attempt.take(first_fit(buffers, order))
    return attempt


def _improve(attempt: _Attempt, bound: int, effort: Effort) -> None:
    """Try the lower bound itself, then halve the gap between it and the best plan until the work is spent."""
    enough = int(bound * (1 + effort.gap))
    step = _granule(attempt.buffers, attempt.timeline)
    work = effort.improve * attempt.dive
    low, target = bound - 1, bound
    while work > 0 and attempt.peak > enough and low + step < attempt.peak:
        share = min(work, max(work // 2, 3 * _FIRST_LIMIT * attempt.dive))
        work -= share - attempt.reach(target, share)
        if attempt.peak > target:
            low = max(low, target, attempt.impossible) // step * step
        target = (low + attempt.peak) // 2 // step * step


def _granule(buffers: Sequence[Buffer], timeline: Timeline) -> int:
    """A number that divides every peak worth a try: ends are sums of sizes, alignments and fixed offsets."""
    sizes = gcd(*timeline.padded, *(b.size for b in buffers), *(b.offset or 0 for b in buffers))
    return max(1, gcd(sizes, *(b.align for b in buffers if sizes % b.align)))


def _check_fixed(buffers: Sequence[Buffer]) -> None:
    fixed = [(b.offset, b) for b in buffers if b.offset is not None]
    for index, (at, one) in enumerate(fixed):
        for where, other in fixed[:index]:
            if at < where + other.size and where < at + one.size and one.overlaps(other):
                raise PlanError(
                    "plan memory",
                    f"fixed buffers {other.name!r} and {one.name!r}",
                    f"bytes [{where}, {where + other.size}) and [{at}, {at + one.size})",
                    "disjoint bytes",
                    "move one of them or drop its fixed offset",
                )


def _over_budget(bound: Peak, capacity: int, needed: int, reason: str) -> BudgetError:
    return BudgetError(
        "plan memory",
        f"buffers live at step {bound.step} ({bound.names()})",
        f"{needed} bytes, {needed - capacity} over ({reason}; live at once: {bound.bytes})",
        f"{capacity} bytes",
        "raise the memory budget, or update fewer layers or channels",
    )
