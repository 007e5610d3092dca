"""The complete search from nothing, against trying every vector of counts."""

from __future__ import annotations

from itertools import product

from hypothesis import assume, given, settings

from tests.selection.problems import problems
from tvm_tinytrain.selection import Accounting, Budgets, FisherMap, Problem
from tvm_tinytrain.selection.exhaustive import search_all

Case = tuple[Accounting, FisherMap, Budgets]


@settings(max_examples=400, deadline=None)
@given(problems(layers=6, channels=4))
def test_search_without_an_incumbent(case: Case) -> None:
    """A strong incumbent cuts nearly everything and hides what the search itself would miss."""
    problem = Problem.make(*case[:2], case[2])
    spans = [range(c.usable + 1) for c in problem.candidates]
    every = 1
    for span in spans:
        every *= len(span)
    assume(every <= 2000)
    best = max(problem.value(counts) for counts in product(*spans) if problem.feasible(counts))
    found = search_all(problem, problem.nothing)
    assert problem.feasible(found)
    assert problem.value(found) == best
