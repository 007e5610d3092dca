"""The validator knows every way in which a plan can be wrong, and names it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory.strategies import problems
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.memory import GREEDY, plan_memory, validate_plan
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem

PROBLEM = MemoryProblem((Buffer("a", 16, 0, 2), Buffer("b", 24, 1, 3), Buffer("c", 16, 2, 4)), capacity=48)
GOOD = MemoryPlan((("a", 0), ("b", 16), ("c", 0)), peak=40, lower_bound=40)


def offsets(**places: int) -> MemoryPlan:
    peak = max(places[b.name] + b.size for b in PROBLEM.buffers if b.name in places)
    return MemoryPlan(tuple(places.items()), peak, 40)


def test_a_good_plan_passes() -> None:
    validate_plan(PROBLEM, GOOD)


WRONG = {
    "clash": (offsets(a=0, b=8, c=32), r"buffers 'a' and 'b': found bytes \[0, 16\) and \[8, 32\) both live in steps \[1, 2\)"),
    "same place": (offsets(a=0, b=16, c=16), r"buffers 'b' and 'c': found bytes .* both live in steps \[2, 3\)"),
    "misaligned": (offsets(a=0, b=20, c=0), r"buffer 'b': found offset 20, misaligned by 4; allowed a multiple of 8"),
    "negative": (offsets(a=-8, b=16, c=0), r"buffer 'a': found offset -8; allowed an integer >= 0"),
    "missing": (offsets(a=0, b=16), r"buffer 'c': found no offset \(1 buffers without\)"),
    "stranger": (replace(GOOD, offsets=(*GOOD.offsets, ("d", 0))), "buffer 'd': found an offset for a buffer the problem lacks"),
    "twice": (replace(GOOD, offsets=(*GOOD.offsets, ("a", 0))), "buffer 'a': found two offsets"),
    "peak too low": (replace(GOOD, peak=32), r"peak: found 32 bytes; allowed 40, where buffer 'b' ends"),
    "peak too high": (replace(GOOD, peak=48), "peak: found 48 bytes; allowed 40"),
    "bound too low": (replace(GOOD, lower_bound=39), r"lower bound: found 39 bytes; allowed 40 \(live at once\) to 40"),
    "bound too high": (replace(GOOD, lower_bound=41), "lower bound: found 41 bytes"),
    "over capacity": (offsets(a=0, b=32, c=0), "buffer 'b': found its end at byte 56, 8 over; allowed a capacity of 48 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plan_is_refused(name: str) -> None:
    plan, message = WRONG[name]
    with pytest.raises(PlanError, match="validate memory plan: " + message):
        validate_plan(PROBLEM, plan)


def test_a_fixed_buffer_must_stay() -> None:
    problem = MemoryProblem((Buffer("a", 8, 0, 1, offset=8),))
    with pytest.raises(PlanError, match="buffer 'a': found offset 0; allowed its fixed offset 8"):
        validate_plan(problem, MemoryPlan((("a", 0),), 8, 8))


@settings(max_examples=100, deadline=None)
@given(problems(most=25, steps=12), st.randoms(use_true_random=False))
def test_it_agrees_with_a_byte_map(problem: MemoryProblem, rng: random.Random) -> None:
    """Move one buffer of a valid plan and paint every byte of every step: a byte painted twice is a clash."""
    plan = plan_memory(problem, effort=GREEDY)
    if not problem.buffers:
        return
    moved = rng.choice(problem.buffers)
    places = dict(plan.offsets) | {moved.name: rng.randrange(0, plan.peak + 16, moved.align)}
    peak = max(places[b.name] + b.size for b in problem.buffers)
    painted: set[tuple[int, int]] = set()
    clash = False
    for b in problem.buffers:
        cells = {
            (t, a) for t in range(b.lower, b.upper) for a in range(places[b.name], places[b.name] + b.size)
        }
        clash = clash or not painted.isdisjoint(cells)
        painted |= cells
    candidate = MemoryPlan(tuple(places.items()), peak, min(plan.lower_bound, peak))
    if clash:
        with pytest.raises(PlanError, match="both live in steps"):
            validate_plan(problem, candidate)
    else:
        validate_plan(problem, candidate)
