"""The criterion "exact": the most Fisher potential under the exact budgets.

Maximise Σ q_o over the selected channels subject to bytes(plan) ≤ budget and MACs(plan) ≤ budget, where the
earliest trained layer pays for the dX chain behind it, and bytes are what the memory planner really needs.
The paper's greedy ranking sees neither the chain nor the planner.

The decision, for an implementation in C. `counts` has one number for each candidate layer; channels are
taken in the order of step 5 of `criterion`; channels with q = 0 are never taken. A plan replaces the
incumbent only if its value Σ q is strictly larger. `linear` is what counts cost by the per-channel costs
alone; `overhead` = real cost - linear.

1. Incumbents: the empty plan, then for channel_ratio, 1/2, 1/4, 1/8 the greedy plan of the criterion
   "tinytrain" with "skip", without its channels of q = 0, topped up (step 3).
2. For each candidate d from the last to the first as the earliest trained layer: start from one channel of d;
   go on with the next d if that is infeasible or its q is 0. Room = budgets - overhead of the start - one
   channel of d. Up to 4 times: if a room is negative, the start is the result; else propose counts for the
   layers ≥ d (`knapsack`); if they are feasible, they are the result; else take for each budget the largest
   overhead seen so far. If the fourth proposal is infeasible too, drop channels: always the last one of the
   layer with the smallest q/w, w the prices of that proposal (ties to the larger layer id), never the first of
   d; as many as cover the excess by per-channel cost, then ask for the real cost again. Top up the result.
3. Top up: room = budgets - real cost. Fill all layers ≥ the earliest trained one by descending q/w with the
   prices for a = 32; if that is infeasible, fill only the layers that are trained already; if that is
   infeasible too, leave the plan as it was.
4. Improve the incumbent, up to 8 rounds: for each candidate i from the earliest trained one on, in ascending
   order, and r in 1, 2, 4: skip r if i has fewer channels than r (the earliest trained layer keeps one). Take r
   channels from i; room = budgets - real cost of the incumbent + r channels of i. Fill the layers from the
   earliest trained one on without i by the prices for a = 32, then, from the same start, with w = 1; the
   first of these plans that is feasible and strictly better is the new incumbent. A round without one ends it.
5. If the product of (usable_i + 1) over the candidates is at most `exhaustive_limit`, usable_i being the
   channels with q > 0: search all counts (`exhaustive`).

Every plan that is kept was checked against both real budgets. Memory: a few arrays of one entry for each
candidate layer, and the sorted channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import prod

from tvm_tinytrain.selection.criterion import Greedy, rank, take_greedily
from tvm_tinytrain.selection.exhaustive import search_all
from tvm_tinytrain.selection.knapsack import STEPS, Room, fill, prices, propose
from tvm_tinytrain.selection.problem import Counts, Problem

_RATIOS = (Fraction(1, 2), Fraction(1, 4), Fraction(1, 8))
_PROPOSALS = 4
_ROUNDS = 8
_REMOVALS = (1, 2, 4)


@dataclass(frozen=True)
class Exact:
    """Options of the search.

    channel_ratio: the result is never worse than "tinytrain" with this ratio, nor with 1/2, 1/4, 1/8.
    exhaustive_limit: largest number of count vectors that is searched completely.
    """

    channel_ratio: Fraction = Fraction(1, 4)
    exhaustive_limit: int = 1 << 14


def maximise(problem: Problem, options: Exact | None = None) -> tuple[Counts, bool]:
    """Search for the plan of largest summed potential. Returns its counts, and whether that is proven."""
    options = options or Exact()
    best = problem.nothing
    for plan in _plans(problem, options):
        if problem.value(plan) > problem.value(best):
            best = plan
    best = _improve(problem, best)
    if prod(c.usable + 1 for c in problem.candidates) <= options.exhaustive_limit:
        return search_all(problem, best), True
    return best, False


def _plans(problem: Problem, options: Exact) -> Iterator[Counts]:
    ranking = rank(problem, "tinytrain")
    for ratio in (options.channel_ratio, *_RATIOS):
        greedy = take_greedily(problem, Greedy("tinytrain", ratio, "skip"), ranking)
        yield _top_up(
            problem, tuple(min(k, c.usable) for c, k in zip(problem.candidates, greedy, strict=True))
        )
    for d in reversed(range(len(problem.candidates))):
        start = tuple(int(i == d) for i in range(len(problem.candidates)))
        if problem.candidates[d].usable and problem.feasible(start):
            yield _top_up(problem, _at_depth(problem, d, start))


def _at_depth(problem: Problem, d: int, start: Counts) -> Counts:
    over_bytes, over_macs = _overhead(problem, start)
    counts, price = start, [1] * len(start)
    for _ in range(_PROPOSALS):
        room = Room(problem.budgets.memory_limit - over_bytes, problem.budgets.macs_limit - over_macs)
        room = room.less(problem.candidates[d])
        if room.overdrawn:
            return start
        tail, tail_price = propose(problem.candidates[d:], start[d:], room)
        counts, price = (0,) * d + tail, [1] * d + tail_price
        if problem.feasible(counts):
            return counts
        more_bytes, more_macs = _overhead(problem, counts)
        over_bytes, over_macs = max(over_bytes, more_bytes), max(over_macs, more_macs)
    return _drop(problem, counts, d, price)


def _overhead(problem: Problem, counts: Counts) -> tuple[int, int]:
    chosen = list(zip(problem.candidates, counts, strict=True))
    linear_bytes = sum(c.bytes * k for c, k in chosen)
    return problem.memory(counts) - linear_bytes, problem.macs(counts) - sum(c.macs * k for c, k in chosen)


def _drop(problem: Problem, counts: Counts, d: int, price: list[int]) -> Counts:
    """Give channels back, the least potential per price first, until both budgets hold; d keeps one."""
    left = list(counts)

    def worth(i: int) -> Fraction:
        return Fraction(int(problem.candidates[i].potentials[left[i] - 1]), price[i])

    while not problem.feasible(tuple(left)):
        room = _room(problem, tuple(left))
        while room.overdrawn:
            spare = [i for i, k in enumerate(left) if k > int(i == d)]
            if not spare:
                break
            least = min(spare, key=lambda i: (worth(i), -i))
            left[least] -= 1
            room = room.less(problem.candidates[least], -1)
    return tuple(left)


def _room(problem: Problem, counts: Counts) -> Room:
    budgets = problem.budgets
    return Room(budgets.memory_limit - problem.memory(counts), budgets.macs_limit - problem.macs(counts))


def _top_up(problem: Problem, counts: Counts) -> Counts:
    """Spend what is left, first on all layers behind the earliest, then on those that are trained anyway."""
    if not any(counts):
        return counts
    first = _earliest(counts)
    room = _room(problem, counts)
    for barred in ((), tuple(i for i, k in enumerate(counts) if not k)):
        trial = _fill(problem, counts, first, room, barred, even=False)
        if problem.feasible(trial):
            return trial
    return counts


def _earliest(counts: Counts) -> int:
    return next(i for i, k in enumerate(counts) if k)


def _fill(
    problem: Problem, counts: Counts, first: int, room: Room, barred: tuple[int, ...], *, even: bool
) -> Counts:
    """Fill layers from `first` on, except the barred ones, by q/w (`even`: by q alone)."""
    open_layers = [i for i in range(first, len(counts)) if i not in barred]
    if not open_layers:
        return counts
    candidates = [problem.candidates[i] for i in open_layers]
    price = [1] * len(candidates) if even else prices(candidates, room, STEPS // 2)
    filled = list(counts)
    for i, k in zip(
        open_layers, fill(candidates, tuple(counts[i] for i in open_layers), room, price), strict=True
    ):
        filled[i] = k
    return tuple(filled)


def _improve(problem: Problem, best: Counts) -> Counts:
    """Exchange channels of one layer for channels of others while that captures more."""
    for _ in range(_ROUNDS if any(best) else 0):
        before = best
        for i in range(_earliest(best), len(best)):
            for removed in _REMOVALS:
                best = _exchange(problem, best, i, removed)
        if best == before:
            break
    return best


def _exchange(problem: Problem, best: Counts, i: int, removed: int) -> Counts:
    first = _earliest(best)
    if best[i] - removed < int(i == first):
        return best
    less = (*best[:i], best[i] - removed, *best[i + 1 :])
    room = _room(problem, best).less(problem.candidates[i], -removed)
    for even in (False, True):
        trial = _fill(problem, less, first, room, (i,), even=even)
        if problem.value(trial) > problem.value(best) and problem.feasible(trial):
            return trial
    return best
