"""Bytes that no placement can do without, and the buffers that need them."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_tinytrain.memory.timeline import Timeline
from tvm_tinytrain.plan import Buffer, MemoryProblem


@dataclass(frozen=True)
class Peak:
    """Where the bound comes from: the program step, the bytes, and what is live there, largest first."""

    step: int
    bytes: int
    live: tuple[Buffer, ...]

    def names(self, most: int = 12) -> str:
        """Return 'name size' of the live buffers for an error or a report, the largest `most` of them."""
        shown = ", ".join(f"{buffer.name} {buffer.size}" for buffer in self.live[:most])
        rest = self.live[most:]
        more = f", and {len(rest)} more of {sum(buffer.size for buffer in rest)} bytes" if rest else ""
        return shown + more


def lower_bound_peak(problem: MemoryProblem) -> Peak:
    """Return the step with the largest sum of live bytes, padded by alignment; the earliest of equals.

    A buffer with a fixed offset needs offset + size, whatever else is live.
    """
    timeline = Timeline.of(problem.buffers)
    peak = Peak(0, 0, ())
    for section, step in enumerate(timeline.steps):
        members = (problem.buffers[index] for index in timeline.cover[section])
        live = sorted(members, key=lambda b: (-b.size, b.name))
        fixed = [buffer.offset + buffer.size for buffer in live if buffer.offset is not None]
        need = max([timeline.need(section), *fixed])
        if need > peak.bytes:
            peak = Peak(step, need, tuple(live))
    return peak


def lower_bound(problem: MemoryProblem) -> int:
    """Return the bytes that no placement of the problem can do without: the largest sum of live bytes."""
    return lower_bound_peak(problem).bytes
