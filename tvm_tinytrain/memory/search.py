"""Exact search for a placement within a capacity: bottom-up branching, floor propagation, backjumping.

The algorithm in ten bullets (the problem is a shop schedule: sections are machines, buffers are jobs that
occupy all machines of a contiguous run at the same time, offsets are start times):

 1. Without loss every buffer rests on offset 0 or on the end of another one that it meets.
 2. `floor[s]`: no unplaced buffer of section s starts below it. `start[b]`: b cannot start below it.
 3. start[b] is at least the highest floor of its sections, aligned, and clear of the fixed buffers.
 4. floor[s] is at least the lowest start of its unplaced buffers: space that nobody can reach is lost.
 5. Stacking the unplaced buffers of a section in order of their starts must end within the capacity.
 6. A buffer that leaves too little room for the others when it comes first in a section is not the first:
    it starts above the earliest end of the others.
 7. Rules 3-6 run to a fixed point after each placement. Every derived bound keeps the set of placements that
    it follows from, as a bit mask of depths.
 8. Branching: take the section with the lowest floor, there the fewest candidates. One of its buffers that
    can start at the floor does, or none does and the floor rises to the lowest end that can support one.
 9. A failure returns the placements that it follows from; the search jumps back to the deepest one of them.
10. What falls apart in time is solved one part after the other, the tightest part first.

The order of candidates is the caller's. Work is counted in inspected (section, buffer) pairs, not in seconds,
so that the answer is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tvm_tinytrain.memory.greedy import align_up
from tvm_tinytrain.memory.timeline import Timeline
from tvm_tinytrain.plan import Buffer

_Part = tuple[int, int]  # sections [first, stop) that no unplaced buffer crosses the borders of


@dataclass
class Outcome:
    """The offsets, or None; `exhausted` proves that there are none. work: (section, buffer) pairs inspected."""

    offsets: list[int] | None
    exhausted: bool
    work: int


@dataclass
class _State:
    """Bounds at a node of the search; see the module's text. `slack`: bytes a section can still lose."""

    floor: list[int]
    slack: list[int]
    cover: list[tuple[int, ...]]
    start: list[int]
    floor_why: list[int]
    start_why: list[int]

    def copy(self) -> _State:
        return _State(
            self.floor[:], self.slack[:], self.cover[:], self.start[:], self.floor_why[:], self.start_why[:]
        )


@dataclass
class _Frame:
    """One depth of the search: the section branched on, candidates left, and why those tried have failed."""

    state: _State
    agenda: tuple[_Part, ...]
    section: int = 0
    level: int = 0
    why: int = 0
    candidates: list[int] = field(default_factory=list)
    placed: int = -1


def _obstacles(buffer: Buffer, buffers: Sequence[Buffer]) -> list[tuple[int, int]]:
    """The bytes [low, high) that fixed buffers bar for another one; ascending, those that touch are one."""
    barred: list[tuple[int, int]] = []
    for low, size in sorted(
        (b.offset, b.size) for b in buffers if b.offset is not None and b.overlaps(buffer)
    ):
        if barred and low <= barred[-1][1]:
            barred[-1] = (barred[-1][0], max(barred[-1][1], low + size))
        else:
            barred.append((low, low + size))
    return [] if buffer.offset is not None else barred


class Search:
    """A search over one problem; `run` may be called repeatedly with other orders, capacities and limits."""

    def __init__(self, buffers: Sequence[Buffer], timeline: Timeline) -> None:
        self._size = [buffer.size for buffer in buffers]
        self._align = [buffer.align for buffer in buffers]
        self._fixed = [buffer.offset for buffer in buffers]
        self._timeline = timeline
        self._first, self._stop, self._padded = timeline.first, timeline.stop, timeline.padded
        self._obstacles = [_obstacles(buffer, buffers) for buffer in buffers]
        self._capacity = 0
        self._work = 0

    def run(self, capacity: int, rank: Sequence[int], limit: int) -> Outcome:
        """Look for offsets with every buffer's end <= capacity.

        rank: a buffer of lower rank is tried first. limit: work after which the search gives up.
        """
        timeline = self._timeline
        self._capacity, self._work = capacity, 0
        count = len(timeline.cover)
        slack = [capacity - timeline.need(section) for section in range(count)]
        start = [self._clear(b, 0) if fixed is None else fixed for b, fixed in enumerate(self._fixed)]
        if any(at + size > capacity for at, size in zip(start, self._size, strict=True)):
            return Outcome(None, True, 0)
        state = _State([0] * count, slack, list(timeline.cover), start, [0] * count, [0] * len(start))
        if min(slack, default=0) < 0 or self._propagate(state, range(count)) is not None:
            return Outcome(None, True, self._work)
        stack = [_Frame(state, tuple(self._split(state, (0, count), 0, count)))]
        if not self._open(stack[0], rank):
            return Outcome([], True, self._work)
        while stack:
            if self._work > limit:
                return Outcome(None, False, self._work)
            frame, bit = stack[-1], 1 << (len(stack) - 1)
            if frame.candidates:
                child, why = self._place(frame, bit)
                if child is not None:
                    if not self._open(child, rank):
                        return Outcome(self._collect(stack), False, self._work)
                    stack.append(child)
                    continue
            else:
                refuted = self._raise_floor(frame)
                if refuted is None:
                    self._open(frame, rank)
                    continue
                why = refuted
                stack.pop()
            while stack and not why >> (len(stack) - 1) & 1:
                stack.pop()
            if stack:
                stack[-1].why |= why & ~(1 << (len(stack) - 1))
        return Outcome(None, True, self._work)

    def _collect(self, stack: list[_Frame]) -> list[int]:
        offsets = [0] * len(self._size)
        for frame in stack:
            offsets[frame.placed] = frame.level
        return offsets

    def _split(self, state: _State, part: _Part, first: int, stop: int) -> list[_Part]:
        """Cut a part at the borders inside [first, stop) that no unplaced buffer crosses any more; the tightest
        piece comes first, pieces without unplaced buffers are dropped."""
        borders = [part[0]]
        for section in range(first, stop):
            cover = state.cover[section]
            if section > part[0] and (not cover or min(map(self._first.__getitem__, cover)) == section):
                borders.append(section)
        if stop < part[1] and not state.cover[stop - 1]:
            borders.append(stop)
        borders.append(part[1])
        pieces = [
            (min(state.slack[low:high]), low, high) for low, high in pairwise(borders) if state.cover[low]
        ]
        return [(low, high) for _, low, high in sorted(pieces)]

    def _open(self, frame: _Frame, rank: Sequence[int]) -> bool:
        """Choose the section to branch on and list its candidates; False when nothing is left to place."""
        if not frame.agenda:
            return False
        state = frame.state
        first, stop = frame.agenda[0]
        floor, start = state.floor, state.start
        level = min(floor[s] for s in range(first, stop) if state.cover[s])
        best: tuple[int, int, int] | None = None
        for section in range(first, stop):
            cover = state.cover[section]
            if cover and floor[section] == level:
                self._work += len(cover)
                found = [b for b in cover if start[b] == level]
                key = (len(found) + (state.slack[section] > 0), state.slack[section], section)
                if best is None or key < best:
                    best, candidates = key, found
        assert best is not None
        frame.section, frame.level = best[2], level
        frame.why = state.floor_why[frame.section] | self._why_starts(state, state.cover[frame.section])
        distinct: dict[tuple[int, ...], int] = {}
        for b in sorted(candidates, key=rank.__getitem__):
            distinct.setdefault(
                (
                    self._first[b],
                    self._stop[b],
                    self._size[b],
                    self._align[b],
                    -1 if self._fixed[b] is None else b,
                ),
                b,
            )
        frame.candidates = list(distinct.values())[::-1]
        return True

    def _place(self, frame: _Frame, bit: int) -> tuple[_Frame | None, int]:
        """Put the next candidate at the frame's level; the child frame, or the placements that forbid it."""
        b = frame.candidates.pop()
        frame.placed = b
        state, level = frame.state.copy(), frame.level
        first, stop = self._first[b], self._stop[b]
        for section in range(first, stop):  # all their floors are at the level, which is the part's lowest
            state.floor[section] = level + self._padded[b]
            state.floor_why[section] |= bit
            state.cover[section] = tuple([other for other in state.cover[section] if other != b])
        conflict = self._propagate(state, range(first, stop))
        if conflict is not None:
            return None, conflict
        return _Frame(state, (*self._split(state, frame.agenda[0], first, stop), *frame.agenda[1:])), 0

    def _raise_floor(self, frame: _Frame) -> int | None:
        """No buffer of the section starts at the level: lift its floor to the lowest end that supports one.

        Returns None when the frame may be opened again, else the placements that forbid it.
        """
        state, section, level = frame.state, frame.section, frame.level
        supports: list[int] = []
        for b in state.cover[section]:
            if state.start[b] > level:
                supports.append(state.start[b])
                continue
            if self._fixed[b] is not None:
                return frame.why
            for other in range(self._first[b], self._stop[b]):
                frame.why |= state.floor_why[other]
                self._work += len(state.cover[other])
                for under in state.cover[other]:
                    if not self._first[under] <= section < self._stop[under]:
                        frame.why |= state.start_why[under]
                        supports.append(align_up(state.start[under] + self._padded[under], self._align[b]))
        raised = min(supports, default=None)
        if raised is None or raised - level > state.slack[section]:
            return frame.why
        state.slack[section] -= raised - level
        state.floor[section] = raised
        state.floor_why[section] = frame.why
        return self._propagate(state, (section,))

    def _propagate(self, state: _State, changed: Iterable[int]) -> int | None:
        """Run rules 3-6 to a fixed point from the changed sections; None, or the placements in the way."""
        floor, start, cover = state.floor, state.start, state.cover
        check = set(changed)  # sections with another member or another start
        risen = set(check)  # sections with another floor
        while check or risen:
            for b in {b for section in risen for b in cover[section]}:
                first, stop = self._first[b], self._stop[b]
                floors = floor[first:stop]
                highest = max(floors)
                if highest > start[b]:
                    why = state.floor_why[first + floors.index(highest)]
                    if not self._move(state, b, highest, why):
                        return why
                    check.update(range(first, stop))
            sections, check, risen = sorted(check), set(), set()
            for section in sections:
                if cover[section]:
                    conflict = self._tighten(state, section, check, risen)
                    if conflict is not None:
                        return conflict
        return None

    def _tighten(self, state: _State, section: int, check: set[int], risen: set[int]) -> int | None:
        """Apply rules 4-6 to one section and note what has to be looked at next in `check` and `risen`."""
        start, cover = state.start, state.cover[section]
        self._work += len(cover)
        starts = [start[b] for b in cover]
        lowest = min(starts)
        if lowest > state.floor[section]:
            state.slack[section] -= lowest - state.floor[section]
            state.floor[section] = lowest
            state.floor_why[section] |= self._why_starts(state, cover)
            risen.add(section)
        latest_first = lowest + state.slack[section]
        if max(starts) <= latest_first:
            return None  # each of them may come first, so they fit in any order
        jobs = sorted([(start[b], self._padded[b], b) for b in cover])
        end, critical = -1, 0
        for index, (at, length, _) in enumerate(jobs):
            if at > end:
                end, critical = at, index
            end += length
        if end > self._capacity + self._timeline.spare[section]:
            return self._why_starts(state, [b for _, _, b in jobs[critical:]])
        why = state.floor_why[section] | self._why_starts(state, cover)
        earliest = min([at + length for at, length, _ in jobs if at <= latest_first])
        for at, _, b in jobs:
            if latest_first < at < earliest:
                if not self._move(state, b, earliest, why):
                    return why
                check.update(range(self._first[b], self._stop[b]))
        return None

    @staticmethod
    def _why_starts(state: _State, buffers: Iterable[int]) -> int:
        why = 0
        for b in buffers:
            why |= state.start_why[b]
        return why

    def _move(self, state: _State, b: int, at: int, why: int) -> bool:
        """Raise the start of a buffer to `at` or the next place that suits it; False when there is none."""
        fixed = self._fixed[b]
        if fixed is not None:
            return at <= fixed
        at = self._clear(b, at)
        if at + self._size[b] > self._capacity:
            return False
        state.start[b], state.start_why[b] = at, why
        return True

    def _clear(self, b: int, at: int) -> int:
        """The lowest aligned offset >= at where the buffer meets none of the fixed ones."""
        at = align_up(at, self._align[b])
        for low, high in self._obstacles[b]:
            if at < high and low < at + self._size[b]:
                at = align_up(high, self._align[b])
        return at
