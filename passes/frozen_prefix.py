"""The frozen prefix of a task-adaptive program: what lies before the earliest selected layer never changes while it trains.

Its result per sample can be kept and need not be computed again. For every depth the analysis finds two calls before which an entry can
be cut, and the tensors that are alive there, which are what a cache has to hold: in front of the earliest selected layer, and behind
that layer's kernel over the frozen weight, whose result is kept beside the layer's input; its trained channels are computed anew. The
second one takes more bytes per sample and saves the layer's forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.adaptive import Guard
from tvm_tinytrain.passes.program import Entry, Program


@dataclass(frozen=True)
class CachePoint:
    """An entry may begin with call ``cut`` if the tensors ``live`` are restored first."""

    cut: int
    live: tuple[str, ...]


def cache_points(
    program: Program, guards: Mapping[str, tuple[Guard, ...]], names: Sequence[str], candidates: int
) -> dict[str, tuple[tuple[CachePoint, CachePoint], ...]]:
    """{entry: two cache points per depth}, for entries ``names`` that share a cache: all of them keep the same tensors there.

    One lies in front of the earliest selected candidate, one behind its kernel over the frozen weight. Blocks that are computed
    again on the way back need their input then: where that makes the entries differ, the first point moves to the last
    frozen weight in front of which they do not, and the second one joins it.
    """
    entries = [next(e for e in program.entries if e.name == name) for name in names]
    points: dict[str, list[tuple[CachePoint, CachePoint]]] = {name: [] for name in names}

    def sizes(point: CachePoint) -> list[tuple[int, str]]:
        return [(program.storage(n).bytes, program.storage(n).dtype) for n in point.live]

    for depth in range(candidates):
        selected = ((1 << candidates) - 1) >> depth << depth
        trained = [_first_trained(e, guards[e.name], selected) for e in entries]
        found = [
            _fronts(program, e, guards[e.name], selected, front)
            for e, (front, _) in zip(entries, trained, strict=True)
        ]
        common = [w for w in found[0] if all(w in f and sizes(f[w]) == sizes(found[0][w]) for f in found)]
        if not common:
            raise PlanError(
                "task-adaptive", "frozen prefix", [list(f) for f in found], "a place where all entries need the same",
                "report this network",
            )  # fmt: skip
        behind = [
            _point(program, e, guards[e.name], selected, cut)
            for e, (_, cut) in zip(entries, trained, strict=True)
        ]
        alike = all(sizes(point) == sizes(behind[0]) for point in behind)
        for name, fronts, second in zip(names, found, behind, strict=True):
            points[name].append((fronts[common[-1]], second if alike else fronts[common[-1]]))
    return {name: tuple(pairs) for name, pairs in points.items()}


def _fronts(
    program: Program, entry: Entry, guards: tuple[Guard, ...], selected: int, last: int
) -> dict[str, CachePoint]:
    """{frozen weight that the next call reads: cache point in front of it}, up to call ``last``."""
    constant = {s.name for s in program.storages if s.role == "const"}
    found: dict[str, CachePoint] = {}
    for cut in range(min(last + 1, len(entry.calls))):
        weight = next((a for a in entry.calls[cut].args if a in constant), None)
        if weight is not None and weight not in found:
            found[weight] = _point(program, entry, guards, selected, cut)
    return found


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
