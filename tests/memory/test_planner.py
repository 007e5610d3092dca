"""The planner against a brute-force search, its error texts, and small problems that once went wrong."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings

from tests.memory.brute_force import best_peak, fits
from tests.memory.strategies import problems
from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.memory import GREEDY, NORMAL, Effort, lower_bound, plan_memory, validate_plan
from tvm_tinytrain.plan import Buffer, MemoryProblem


@settings(max_examples=80, deadline=None)
@given(problems(most=6))
def test_small_problems_are_planned_at_the_optimum(problem: MemoryProblem) -> None:
    plan = plan_memory(problem)
    validate_plan(problem, plan)
    assert plan.peak == best_peak(problem)


@settings(max_examples=80, deadline=None)
@given(problems(most=5, fixed=True))
def test_fixed_buffers_stay_and_the_rest_is_at_the_optimum(problem: MemoryProblem) -> None:
    best = best_peak(problem)
    if best is None:
        with pytest.raises(PlanError, match="fixed buffers"):
            plan_memory(problem)
        return
    plan = plan_memory(problem)
    validate_plan(problem, plan)
    assert plan.peak == best


@settings(max_examples=60, deadline=None)
@given(problems(most=6))
def test_the_optimum_is_a_capacity_and_one_byte_less_is_none(problem: MemoryProblem) -> None:
    best = best_peak(problem)
    assume(best)
    assert best is not None
    plan = plan_memory(replace(problem, capacity=best))
    assert plan.peak == best
    with pytest.raises(BudgetError, match=r"1 over \((proved by search|no placement can need less)"):
        plan_memory(replace(problem, capacity=best - 1))


@settings(max_examples=40, deadline=None)
@given(problems(most=40, steps=30))
def test_larger_problems_are_valid_and_near_the_lower_bound(problem: MemoryProblem) -> None:
    for effort in (GREEDY, Effort(improve=5)):
        plan = plan_memory(problem, effort=effort)
        validate_plan(problem, plan)
        assert lower_bound(problem) == plan.lower_bound <= plan.peak


def test_the_same_problem_gives_the_same_plan() -> None:
    rng = random.Random(1)
    buffers = []
    for index in range(60):
        lower = rng.randrange(40)
        buffers.append(Buffer(f"b{index}", 8 * rng.randint(1, 99), lower, lower + rng.randint(1, 15)))
    problem = MemoryProblem(tuple(buffers))
    first = plan_memory(problem)
    assert first == plan_memory(problem)
    assert [name for name, _ in first.offsets] == [b.name for b in problem.buffers]


def test_a_training_step_of_many_layers_is_planned_at_the_lower_bound() -> None:
    """120 layers with saved activations, gradients, one-bit masks, scratch and parameters: 500 buffers."""
    rng = random.Random(7)
    layers, buffers = 120, []
    for i in range(layers):
        size, back = 64 * rng.randint(8, 400), 2 * layers - i
        buffers += [
            Buffer(f"x{i}", size, i, back if i % 3 else i + 2),
            Buffer(f"mask{i}", size // 32, i, back + 1, kind="mask"),
            Buffer(f"dx{i}", size, back - 1, back + 1, kind="gradient"),
            Buffer(f"scratch{i}", 8 * rng.randint(1, 200), back, back + 1, kind="scratch"),
        ]
        if i % 6 == 0:
            buffers.append(Buffer(f"w{i}", 8 * rng.randint(1, 900), 0, 2 * layers + 2, kind="parameter"))
    problem = MemoryProblem(tuple(buffers))
    plan = plan_memory(problem)
    validate_plan(problem, plan)
    assert plan.peak <= plan.lower_bound * 1.001


# (csv, optimum)
REGRESSIONS = {
    # First fit needs 9 bytes in every order that the planner tries.
    "first fit": ("id,lower,upper,size\na,3,6,3\nb,5,6,4\nc,2,3,2\nd,1,4,2\ne,2,3,4\n", 8),
    # The padding that alignment forces between buffers is not needed above the topmost one.
    "tail": ("id,lower,upper,size,alignment\na,0,1,1,16\nb,0,1,15,16\nc,0,1,8,16\n", 33),
    # An 8-byte buffer fits into the padding of one that is aligned to 16.
    "padding": ("id,lower,upper,size,alignment\na,0,1,8,16\nb,0,1,16,16\nc,0,1,8,8\n", 32),
    # A fixed buffer hangs in mid-air: a fits below it, b does not.
    "fixed": ("id,lower,upper,size,offset\nf,0,2,4,6\na,0,1,6,\nb,1,2,7,\n", 17),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions(name: str) -> None:
    text, optimum = REGRESSIONS[name]
    problem = MemoryProblem.from_csv(text)
    assert best_peak(problem) == optimum
    plan = plan_memory(problem)
    validate_plan(problem, plan)
    assert plan.peak == optimum


# 14 buffers of which at most 10 bytes are live at once, and yet no placement ends within 10 bytes.
GAP = """id,lower,upper,size
a,2,3,5
b,3,4,1
c,5,6,1
d,0,4,5
e,3,5,2
f,6,8,5
g,5,7,5
h,7,8,2
i,0,2,1
j,3,6,2
k,0,2,2
l,4,5,1
m,4,6,2
n,7,8,2
"""


def test_a_bound_out_of_reach_is_proved_to_be() -> None:
    problem = MemoryProblem.from_csv(GAP)
    plan = plan_memory(problem)
    validate_plan(problem, plan)
    assert (plan.lower_bound, plan.peak) == (10, 11)
    assert fits(problem, 11)
    assert not fits(problem, 10)
    with pytest.raises(BudgetError, match=r"found 11 bytes, 1 over \(proved by search; live at once: 10\)"):
        plan_memory(replace(problem, capacity=10))


def test_no_buffers_need_no_bytes() -> None:
    plan = plan_memory(MemoryProblem((), capacity=0))
    assert (plan.peak, plan.lower_bound, len(plan)) == (0, 0, 0)


def test_a_budget_below_the_lower_bound_names_what_is_live_at_the_peak_and_the_bytes_over() -> None:
    problem = MemoryProblem(
        (
            Buffer("early", 96, 0, 2),
            Buffer("saved", 64, 1, 6),
            Buffer("gradient", 80, 4, 6),
            Buffer("scratch", 24, 5, 6),
        ),
        capacity=150,
    )
    with pytest.raises(BudgetError) as caught:
        plan_memory(problem)
    assert str(caught.value) == (
        "plan memory: buffers live at step 5 (gradient 80, saved 64, scratch 24): found 168 bytes, 18 over "
        "(no placement can need less; live at once: 168); allowed 150 bytes; "
        "raise the memory budget, or update fewer layers or channels"
    )


def test_a_long_list_of_live_buffers_is_cut_short() -> None:
    problem = MemoryProblem(tuple(Buffer(f"b{i:02}", 8 * (i + 1), 0, 1) for i in range(20)), capacity=8)
    with pytest.raises(BudgetError, match=r"b19 160, .*b08 72, and 8 more of 288 bytes\)"):
        plan_memory(problem)


def test_a_budget_that_fragmentation_breaks_says_so() -> None:
    text = "id,lower,upper,size,alignment\na,0,1,8,16\nb,0,1,8,16\nc,0,2,4,4\nd,1,2,20,16\n"
    problem = MemoryProblem.from_csv(text)
    best = best_peak(problem)
    assert best is not None
    assert best > lower_bound(problem)
    with pytest.raises(BudgetError, match=r"1 over \(proved by search; live at once"):
        plan_memory(replace(problem, capacity=best - 1))


def test_clashing_fixed_buffers_are_named() -> None:
    problem = MemoryProblem((Buffer("a", 16, 0, 2, offset=8), Buffer("b", 16, 1, 3, offset=16)))
    with pytest.raises(PlanError, match=r"fixed buffers 'a' and 'b': found bytes \[8, 24\) and \[16, 32\)"):
        plan_memory(problem)


def test_many_fixed_buffers_cost_no_search() -> None:
    """200 parameters at the bottom, some with 4 bytes of padding behind them, and the hard problem above."""
    fixed = [Buffer(f"w{i}", 8 - 4 * (i % 2), 0, 9, offset=8 * i) for i in range(200)]
    above = [replace(b, size=8 * b.size, align=8) for b in MemoryProblem.from_csv(GAP).buffers]
    problem = MemoryProblem((*above[:5], *fixed, *above[5:]))
    plan = plan_memory(problem)
    validate_plan(problem, plan)
    assert plan.peak == 1600 + 88
    with pytest.raises(BudgetError, match=r"8 over \(proved by search"):
        plan_memory(replace(problem, capacity=1600 + 80))


def test_effort_is_checked() -> None:
    with pytest.raises(PlanError, match="fields >= 0"):
        Effort(improve=-1)
    assert Effort() == NORMAL
