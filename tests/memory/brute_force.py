"""The optimum of a small memory problem by trying every order; shares no code with the planner."""

from __future__ import annotations

from itertools import permutations

from tvm_tinytrain.plan import Buffer, MemoryProblem


def best_peak(problem: MemoryProblem) -> int | None:
    """Return the least peak of any placement, or None when the fixed buffers clash.

    Sort an optimal placement by offset and drop each buffer to the lowest free place in that order: nothing rises.
    So some order of "lowest free offset" is optimal, and all n! are tried.
    """
    fixed = [b for b in problem.buffers if b.offset is not None]
    placed = [(b, b.offset) for b in fixed if b.offset is not None]
    if any(not _free(b, at, [p for p in placed if p[0] is not b]) for b, at in placed):
        return None
    best = None
    for order in permutations([b for b in problem.buffers if b.offset is None]):
        done = list(placed)
        for buffer in order:
            ends = [at + other.size for other, at in done]
            places = sorted({0, *(-(-end // buffer.align) * buffer.align for end in ends)})
            done.append((buffer, next(at for at in places if _free(buffer, at, done))))
        peak = max((at + b.size for b, at in done), default=0)
        best = peak if best is None else min(best, peak)
    return best


def _free(buffer: Buffer, at: int, others: list[tuple[Buffer, int]]) -> bool:
    return all(
        at + buffer.size <= where
        or where + other.size <= at
        or buffer.upper <= other.lower
        or other.upper <= buffer.lower
        for other, where in others
    )


def fits(problem: MemoryProblem, capacity: int) -> bool:
    """Say whether any placement ends within `capacity`, by trying every offset for one buffer after the other."""
    order = sorted(problem.buffers, key=lambda b: b.lower)

    def place(index: int, done: list[tuple[Buffer, int]]) -> bool:
        if index == len(order):
            return True
        buffer = order[index]
        places = (
            range(0, capacity - buffer.size + 1, buffer.align) if buffer.offset is None else [buffer.offset]
        )
        return any(_free(buffer, at, done) and place(index + 1, [*done, (buffer, at)]) for at in places)

    return place(0, [])
