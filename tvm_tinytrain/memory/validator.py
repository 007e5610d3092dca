"""Check a memory plan against its problem. Shares no code with the planner, and runs on every build."""

from __future__ import annotations

from collections import Counter

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem

_STAGE = "validate memory plan"


def validate_plan(problem: MemoryProblem, plan: MemoryPlan) -> None:
    """Raise PlanError unless every buffer has one legal offset and the plan's figures are true.

    Checked in this order: each buffer planned exactly once and no other; offsets are non-negative multiples
    of the alignment and keep fixed places; no two buffers share a byte at a step at which both are live; the
    stated peak is the highest end; the stated lower bound is at least the largest sum of live bytes and no
    more than the peak; the peak is within the capacity.
    """
    _check_names(problem, plan)
    for buffer in problem.buffers:
        _check_offset(buffer, plan[buffer.name])
    _check_clashes(problem, plan)
    _check_figures(problem, plan)


def _check_names(problem: MemoryProblem, plan: MemoryPlan) -> None:
    wanted = [buffer.name for buffer in problem.buffers]
    planned = [name for name, _ in plan.offsets]
    twice = next((name for name, count in Counter(planned).items() if count > 1), None)
    if twice is not None:
        raise PlanError(_STAGE, f"buffer {twice!r}", "two offsets", "one offset", "plan the problem again")
    missing = sorted(set(wanted) - set(planned))
    if missing:
        raise PlanError(
            _STAGE,
            f"buffer {missing[0]!r}",
            f"no offset ({len(missing)} buffers without)",
            "an offset for every buffer",
            "plan the problem that holds it",
        )
    strangers = sorted(set(planned) - set(wanted))
    if strangers:
        raise PlanError(
            _STAGE,
            f"buffer {strangers[0]!r}",
            "an offset for a buffer the problem lacks",
            "buffers of the problem",
            "plan and problem belong to different builds",
        )


def _check_offset(buffer: Buffer, offset: int) -> None:
    thing = f"buffer {buffer.name!r}"
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise PlanError(_STAGE, thing, f"offset {offset!r}", "an integer >= 0", "plan the problem again")
    if offset % buffer.align != 0:
        raise PlanError(
            _STAGE,
            thing,
            f"offset {offset}, misaligned by {offset % buffer.align}",
            f"a multiple of {buffer.align}",
            "plan the problem again",
        )
    if buffer.offset is not None and offset != buffer.offset:
        raise PlanError(
            _STAGE, thing, f"offset {offset}", f"its fixed offset {buffer.offset}", "plan the problem again"
        )


def _check_clashes(problem: MemoryProblem, plan: MemoryPlan) -> None:
    """Compare every pair once; in order of time, so that the scan stops where lifetimes cannot meet."""
    buffers = sorted(problem.buffers, key=lambda buffer: buffer.lower)
    for index, one in enumerate(buffers):
        low, high = plan[one.name], plan[one.name] + one.size
        for other in buffers[index + 1 :]:
            if other.lower >= one.upper:
                break
            other_low, other_high = plan[other.name], plan[other.name] + other.size
            if low < other_high and other_low < high:
                raise PlanError(
                    _STAGE,
                    f"buffers {one.name!r} and {other.name!r}",
                    f"bytes [{low}, {high}) and [{other_low}, {other_high}) both live in steps "
                    f"[{other.lower}, {min(one.upper, other.upper)})",
                    "disjoint bytes for buffers that are live together",
                    "plan the problem again",
                )


def _check_figures(problem: MemoryProblem, plan: MemoryPlan) -> None:
    top = max(problem.buffers, key=lambda buffer: plan[buffer.name] + buffer.size, default=None)
    peak = 0 if top is None else plan[top.name] + top.size
    if plan.peak != peak:
        ends = "no buffer" if top is None else f"buffer {top.name!r}"
        raise PlanError(
            _STAGE, "peak", f"{plan.peak} bytes", f"{peak}, where {ends} ends", "plan the problem again"
        )
    change: dict[int, int] = {}
    for buffer in problem.buffers:
        change[buffer.lower] = change.get(buffer.lower, 0) + buffer.size
        change[buffer.upper] = change.get(buffer.upper, 0) - buffer.size
    live = largest = 0
    for step in sorted(change):
        live += change[step]
        largest = max(largest, live)
    if not largest <= plan.lower_bound <= peak:
        raise PlanError(
            _STAGE,
            "lower bound",
            f"{plan.lower_bound} bytes",
            f"{largest} (live at once) to {peak} (the peak)",
            "plan the problem again",
        )
    if problem.capacity is not None and peak > problem.capacity:
        assert top is not None
        raise PlanError(
            _STAGE,
            f"buffer {top.name!r}",
            f"its end at byte {peak}, {peak - problem.capacity} over",
            f"a capacity of {problem.capacity} bytes",
            "raise the memory budget or update less",
        )
