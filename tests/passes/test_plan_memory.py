"""PlanMemory: what lies where in the arena, on programs written by hand; budgets that cannot be met."""

from __future__ import annotations

import pytest

from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.passes.plan_memory import check_ends, entry_problem, plan_arena
from tvm_tinytrain.passes.program import Entry, KernelCall, Program, Storage


def floats(name: str, count: int, role: str = "activation") -> Storage:
    return Storage(name, (count,), "float32", role)


STORAGES = (
    floats("x", 10, "input"),
    Storage("label", (1,), "int32", "label"),
    floats("w", 3, "param"),
    floats("c", 100, "const"),
    floats("u", 3, "state"),
    floats("predict.a", 20),
    floats("predict.y", 2),
    floats("step.a", 20),
    floats("step.b", 20),
    floats("step.c", 20),
    floats("step.loss", 1),
)
PREDICT = Entry(
    "predict", (KernelCall("first", ("x", "w", "predict.a"), ""), KernelCall("last", ("predict.a", "c", "predict.y"), "")),
    ("x",), "predict.y",
)  # fmt: skip
STEP = Entry(
    "step",
    (
        KernelCall("first", ("x", "w", "step.a"), ""),
        KernelCall("second", ("step.a", "step.b"), ""),
        KernelCall("third", ("step.b", "step.c"), ""),
        KernelCall("loss", ("step.c", "label", "step.loss"), ""),
        KernelCall("update", ("step.c", "w", "u"), ""),
    ),
    ("x", "label"),
    "step.loss",
)
PROGRAM = Program(STORAGES, (PREDICT, STEP))
FIXED = {"label": 0, "w": 8, "u": 24, "step.loss": 40, "x": 48}


def test_persistent_tensors_first_then_the_input() -> None:
    arena = plan_arena(PROGRAM, {})
    assert arena.fixed == FIXED  # eight bytes each where they need less; the constant lies in flash
    assert arena.offset("predict", "x") == arena.offset("step", "x") == 48
    assert "c" not in arena.plans["predict"]


def test_lifetimes_are_half_open_and_begin_with_the_input() -> None:
    problem, workspaces = entry_problem(PROGRAM, STEP, FIXED, {"second": 12})
    lifetimes = {b.name: (b.lower, b.upper, b.size) for b in problem.buffers}
    assert lifetimes == {
        "label": (0, 7, 8),
        "w": (0, 7, 16),
        "u": (0, 7, 16),
        "step.loss": (0, 7, 8),
        "x": (0, 2, 40),
        "step.a": (1, 3, 80),
        "step.b": (2, 4, 80),
        "step.c": (3, 6, 80),
        "step.workspace_2": (2, 3, 16),
    }
    assert workspaces == (None, "step.workspace_2", None, None, None)


def test_activations_share_bytes_and_the_input_is_reused() -> None:
    arena = plan_arena(PROGRAM, {})
    assert (
        arena.arena_bytes == arena.lower_bound == 48 + 80 + 80
    )  # two of a, b, c; x is dead when b and c live
    assert arena.plans["step"]["step.c"] != arena.plans["step"]["step.b"]


def test_workspace_lives_for_one_call() -> None:
    without = plan_arena(PROGRAM, {})
    assert plan_arena(PROGRAM, {"loss": 80}).arena_bytes == without.arena_bytes
    assert plan_arena(PROGRAM, {"second": 80}).arena_bytes == without.arena_bytes + 80


def test_budget_that_is_met_exactly() -> None:
    assert plan_arena(PROGRAM, {}, capacity=208).arena_bytes == 208


def test_budget_that_cannot_be_met_names_what_is_alive_at_the_peak() -> None:
    with pytest.raises(BudgetError) as caught:
        plan_arena(PROGRAM, {}, capacity=200)
    text = str(caught.value)
    assert text.startswith("plan memory (step): buffers live at step 2 (step.a 80, step.b 80, u 16, ")
    assert "found 208 bytes, 8 over" in text and "allowed 200 bytes" in text


def test_scratch_of_a_selection_lies_beside_what_is_kept() -> None:
    """After the last call a selection reads potentials and writes the plan: neither may lie where its scratch does."""
    kept = (floats("p", 6, "plan"), floats("fisher_0", 5, "fisher"))
    calls = (*STEP.calls, KernelCall("potential", ("step.c", "fisher_0"), ""))
    step = Entry("step", calls, STEP.inputs, STEP.result)
    program = Program((*STORAGES, *kept), (PREDICT, step))
    arena = plan_arena(program, {}, scratch={"step": 100})
    buffers = {b.name: b for b in arena.problems["step"].buffers}
    scratch = buffers["step.scratch"]
    assert (scratch.lower, scratch.upper, scratch.size) == (8, 9, 104)
    beside = ["fisher_0", "p", "w", "u", "label", "step.loss"]
    assert all(buffers[name].overlaps(scratch) for name in beside)
    assert [name for name in buffers if buffers[name].lower == 0 and name != "x"] == sorted(
        beside, key=list(buffers).index
    )
    place = {name: arena.offset("step", name) for name in buffers}
    begin, end = place["step.scratch"], place["step.scratch"] + 104
    assert all(place[n] + buffers[n].size <= begin or place[n] >= end for n in beside)


def test_what_ends_behind_the_arena_is_named() -> None:
    arena = plan_arena(PROGRAM, {})
    check_ends(arena, 208)
    with pytest.raises(
        PlanError, match=r"plan memory \(step\): the end of step\.[abc]: found 208; allowed at most 200 bytes"
    ):
        check_ends(arena, 200)
