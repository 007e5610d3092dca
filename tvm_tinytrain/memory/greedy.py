"""First-fit placement in a given order, and the orders that are worth a try."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence

from tvm_tinytrain.memory.timeline import Timeline
from tvm_tinytrain.plan import Buffer


def align_up(value: int, align: int) -> int:
    """Return the least multiple of `align` (a power of two) that is >= value."""
    return (value + align - 1) & -align


def first_fit(buffers: Sequence[Buffer], order: Sequence[int]) -> list[int]:
    """Place one buffer after the other at the lowest offset that is free throughout its lifetime.

    Buffers with a fixed offset are placed first. Returns the offsets in the order of `buffers`.
    """
    offsets = [-1] * len(buffers)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, lower, upper; kept sorted
    fixed = [index for index in order if buffers[index].offset is not None]
    for index in fixed + [index for index in order if buffers[index].offset is None]:
        buffer = buffers[index]
        offset = buffer.offset or 0
        for start, end, lower, upper in placed if buffer.offset is None else ():
            if lower < buffer.upper and buffer.lower < upper:
                if start >= offset + buffer.size:
                    break
                if end > offset:
                    offset = align_up(end, buffer.align)
        offsets[index] = offset
        insort(placed, (offset, offset + buffer.size, buffer.lower, buffer.upper))
    return offsets


def orders(timeline: Timeline) -> Iterator[list[int]]:
    """Yield the orders of buffer indices that planners of compilers are known to start from, best first.

    Width is the number of sections that a buffer is live in; heat is the largest need among them.
    Ties go to the wider, the larger, then the first buffer, so that every order is total.
    """
    count = len(timeline.padded)
    width = [stop - first for first, stop in zip(timeline.first, timeline.stop, strict=True)]
    need = [timeline.need(section) for section in range(len(timeline.cover))]
    heat = [max(need[timeline.first[b] : timeline.stop[b]], default=0) for b in range(count)]
    size = timeline.padded
    yield sorted(range(count), key=lambda b: (-width[b], -size[b], b))
    yield sorted(range(count), key=lambda b: (-size[b], -width[b], b))
    yield sorted(range(count), key=lambda b: (-size[b] * width[b], -width[b], b))
    yield sorted(range(count), key=lambda b: (-heat[b], -width[b], -size[b], b))
    yield sorted(range(count), key=lambda b: (-heat[b], -size[b], -width[b], b))
    yield sorted(range(count), key=lambda b: (timeline.first[b], -width[b], -size[b], b))
    yield sorted(range(count), key=lambda b: (-timeline.stop[b], -width[b], -size[b], b))
