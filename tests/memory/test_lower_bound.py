"""The bound from the largest sum of live bytes, and the sections it is computed on."""

from __future__ import annotations

from hypothesis import given, settings

from tests.memory.brute_force import best_peak
from tests.memory.strategies import problems
from tvm_tinytrain.memory import lower_bound, lower_bound_peak
from tvm_tinytrain.memory.timeline import Timeline
from tvm_tinytrain.plan import Buffer, MemoryProblem


@settings(max_examples=100, deadline=None)
@given(problems(most=5, fixed=True))
def test_it_lies_between_the_live_bytes_and_the_optimum(problem: MemoryProblem) -> None:
    live = [sum(b.size for b in problem.buffers if b.lower <= step < b.upper) for step in range(9)]
    best = best_peak(problem)
    assert lower_bound(problem) >= max(live)
    assert best is None or lower_bound(problem) <= best


@settings(max_examples=100, deadline=None)
@given(problems(most=20, steps=15))
def test_sections_are_the_maximal_live_sets(problem: MemoryProblem) -> None:
    timeline = Timeline.of(problem.buffers)
    live = {
        frozenset(i for i, b in enumerate(problem.buffers) if b.lower <= step < b.upper) for step in range(15)
    }
    maximal = {one for one in live if one and not any(one < other for other in live)}
    assert sorted(map(sorted, maximal)) == sorted(map(list, timeline.cover))
    for section, (step, cover) in enumerate(zip(timeline.steps, timeline.cover, strict=True)):
        assert all(problem.buffers[i].lower <= step < problem.buffers[i].upper for i in cover)
        assert all(
            (timeline.first[i] <= section < timeline.stop[i]) == (i in cover)
            for i in range(len(timeline.first))
        )


def test_the_peak_says_when_and_who() -> None:
    problem = MemoryProblem((Buffer("a", 8, 0, 9), Buffer("b", 16, 3, 5), Buffer("c", 24, 5, 6)))
    peak = lower_bound_peak(problem)
    assert (peak.step, peak.bytes, peak.names()) == (5, 32, "c 24, a 8")


def test_adjacent_lifetimes_do_not_meet() -> None:
    assert lower_bound(MemoryProblem((Buffer("a", 8, 0, 1), Buffer("b", 8, 1, 2)))) == 8


def test_a_fixed_buffer_needs_what_lies_below_it() -> None:
    assert lower_bound(MemoryProblem((Buffer("a", 8, 0, 1, offset=64),))) == 72
