"""Search of all counts, for small problems and as a reference: depth first, with bounds."""

from __future__ import annotations

from tvm_tinytrain.selection.problem import Counts, Problem


def search_all(problem: Problem, incumbent: Counts) -> Counts:
    """Return feasible counts of the largest value; the incumbent when nothing is strictly larger.

    Candidates are decided from the first to the last, each from its most channels down to none. A branch is
    cut when the potential of all undecided channels could not lift it above the best, or when what is
    decided alone breaks a budget (costs never fall when channels are added). Work grows with the product of
    (channels + 1).
    """
    candidates = problem.candidates
    rest = [0] * (len(candidates) + 1)
    for i in reversed(range(len(candidates))):
        rest[i] = rest[i + 1] + candidates[i].potential
    best, best_value = incumbent, problem.value(incumbent)
    counts = [0] * len(candidates)

    # One entry of `counts` changes at a time; the loop below is the recursion with its stack written out.
    # Whoever leaves a candidate, for whatever reason, puts it back to where it began.
    tried = [c.usable + 1 for c in candidates]
    value, i = 0, 0
    while i >= 0:
        bounded = value + rest[i] <= best_value
        if i == len(candidates) and not bounded:
            best, best_value = tuple(counts), value
        if i == len(candidates) or bounded or tried[i] == 0:
            if i < len(candidates):
                tried[i], counts[i] = candidates[i].usable + 1, 0
            i -= 1
            if i >= 0:
                value -= int(candidates[i].prefix[counts[i]])
            continue
        tried[i] -= 1
        counts[i] = tried[i]
        if counts[i] == 0 or problem.feasible(tuple(counts)):
            value += int(candidates[i].prefix[counts[i]])
            i += 1
    return best
