"""The frozen prefix of a task-adaptive program: what lies before the earliest selected layer never changes while it trains.

Its result per sample can be kept and need not be computed again. For every depth the analysis finds the call before which an entry can
be cut, and the tensors that are alive there: they are what a cache has to hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm_tinytrain.passes.adaptive import Guard
from tvm_tinytrain.passes.program import Entry, Program


@dataclass(frozen=True)
class CachePoint:
    """An entry may begin with call ``cut`` if the tensors ``live`` are restored first."""

    cut: int
    live: tuple[str, ...]


def cache_points(
    program: Program, entry: Entry, guards: tuple[Guard, ...], candidates: int
) -> tuple[CachePoint, ...]:
    """One cache point per depth: in front of the first call that works on trained rows of the earliest selected candidate."""
    points = []
    movable = {s.name for s in program.storages if s.role in ("activation", "input")}
    for depth in range(candidates):
        selected = ((1 << candidates) - 1) >> depth << depth
        cut = _first_trained(entry, guards, selected)
        before = list(dict.fromkeys(a for c in entry.calls[:cut] for a in c.args if a in movable))
        read = {
            a
            for call, guard in zip(entry.calls[cut:], guards[cut:], strict=True)
            if guard.runs(selected)
            for a in call.args
        }
        inputs = [a for a in entry.inputs if a in movable and a not in before]
        points.append(
            CachePoint(cut, tuple(a for a in [*inputs, *before] if a in read and a != entry.result))
        )
    return tuple(points)


def _first_trained(entry: Entry, guards: tuple[Guard, ...], selected: int) -> int:
    """The forward call whose result the earliest trained rows change: the one whose output they correct."""
    for i, guard in enumerate(guards):
        if guard.rows is not None and guard.runs(selected):
            outputs = entry.calls[i].outputs
            producer = next((j for j in range(i) if set(entry.calls[j].outputs) & set(outputs)), i)
            return min(producer, i)
    return len(entry.calls)
