"""The frozen prefix of a task-adaptive program: what lies before the earliest selected layer never changes while it trains.

Its result per sample can be kept and need not be computed again. For every depth the analysis finds two calls before which an entry can
be cut, and the tensors that are alive there, which are what a cache has to hold: in front of the earliest selected layer, and behind
that layer's kernel over the frozen weight, whose result is kept beside the layer's input; its trained channels are computed anew. The
second one takes more bytes per sample and saves the layer's forward pass.
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
) -> tuple[tuple[CachePoint, CachePoint], ...]:
    """Two cache points per depth: in front of the earliest selected candidate, and behind its kernel over the frozen weight."""
    points = []
    for depth in range(candidates):
        selected = ((1 << candidates) - 1) >> depth << depth
        front, behind = _first_trained(entry, guards, selected)
        points.append(tuple(_point(program, entry, guards, selected, cut) for cut in (front, behind)))
    return tuple((front, behind) for front, behind in points)


def _point(program: Program, entry: Entry, guards: tuple[Guard, ...], selected: int, cut: int) -> CachePoint:
    movable = {s.name for s in program.storages if s.role in ("activation", "input")}
    before = list(dict.fromkeys(a for c in entry.calls[:cut] for a in c.args if a in movable))
    read = {
        a
        for call, guard in zip(entry.calls[cut:], guards[cut:], strict=True)
        if guard.runs(selected)
        for a in call.args
    }
    inputs = [a for a in entry.inputs if a in movable and a not in before]
    return CachePoint(cut, tuple(a for a in [*inputs, *before] if a in read))


def _first_trained(entry: Entry, guards: tuple[Guard, ...], selected: int) -> tuple[int, int]:
    """The forward call whose result the earliest trained rows change, and the call that changes it."""
    for i, guard in enumerate(guards):
        if guard.rows is not None and guard.runs(selected):
            outputs = entry.calls[i].outputs
            producer = next((j for j in range(i) if set(entry.calls[j].outputs) & set(outputs)), i)
            return min(producer, i), i
    return len(entry.calls), len(entry.calls)
