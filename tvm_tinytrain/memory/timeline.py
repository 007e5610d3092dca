"""The shape of a memory problem: which buffers meet, and how many bytes each one really takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm_tinytrain.plan import Buffer


@dataclass(frozen=True)
class Timeline:
    """Lifetimes compressed to the sections that matter, sizes padded by the alignment that neighbours force.

    A *section* is a set of buffers that are live together and to which no further buffer can be added (a
    maximal clique of the interval graph). Two buffers conflict exactly when they share a section, so a planner
    may forget the steps between. Sections are in order of time; a buffer is live in a contiguous run of them.

    steps[s]: a program step at which all buffers of section s are live.
    cover[s]: indices of its buffers, ascending.
    first[b], stop[b]: the sections of buffer b are first[b] <= s < stop[b].
    padded[b]: size of b rounded up to the least alignment among the buffers that it meets (itself included).
        Whatever lies above b starts at its offset + padded[b] or higher.
    spare[s]: padding which the topmost buffer of section s may leave out, at most; max(padded - size).
    """

    steps: tuple[int, ...]
    cover: tuple[tuple[int, ...], ...]
    first: tuple[int, ...]
    stop: tuple[int, ...]
    padded: tuple[int, ...]
    spare: tuple[int, ...]

    @classmethod
    def of(cls, buffers: Sequence[Buffer]) -> Timeline:
        """Sweep once over the steps at which buffers start and end."""
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for index, buffer in enumerate(buffers):
            starts.setdefault(buffer.lower, []).append(index)
            ends.setdefault(buffer.upper, []).append(index)
        steps: list[int] = []
        cover: list[tuple[int, ...]] = []
        first, stop = [0] * len(buffers), [0] * len(buffers)
        live: set[int] = set()
        last_start = None
        for step in sorted(starts.keys() | ends.keys()):
            if step in ends:
                if last_start is not None:  # the set only grew since the last section: it is maximal now
                    steps.append(last_start)
                    cover.append(tuple(sorted(live)))
                    last_start = None
                for index in ends[step]:
                    stop[index] = len(cover)
                live.difference_update(ends[step])
            if step in starts:
                for index in starts[step]:
                    first[index] = len(cover)
                live.update(starts[step])
                last_start = step
        granule = [min(buffers[index].align for index in section) for section in cover]
        padded = [buffer.size for buffer in buffers]
        for index, buffer in enumerate(buffers):
            padded[index] += -buffer.size % min(granule[first[index] : stop[index]])
        spare = tuple(max(padded[index] - buffers[index].size for index in section) for section in cover)
        return cls(tuple(steps), tuple(cover), tuple(first), tuple(stop), tuple(padded), spare)

    def need(self, section: int) -> int:
        """Bytes that the buffers of a section take at least: they lie one above the other."""
        return sum(self.padded[index] for index in self.cover[section]) - self.spare[section]
