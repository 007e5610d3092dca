"""A memory problem and its plan as JSON values: what an archive carries, so that a picture can be drawn without a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem

KEYS = ("name", "kind", "offset", "bytes", "lower", "upper")
"""Of each buffer; it lives from step ``lower`` up to, and not including, ``upper``."""


def store_plan(problem: MemoryProblem, plan: MemoryPlan) -> dict[str, Any]:
    """The buffers of a problem with their places, in the order of the problem, and the plan's two figures."""
    buffers = [[b.name, b.kind, plan[b.name], b.size, b.lower, b.upper] for b in problem.buffers]
    return {"peak_bytes": plan.peak, "lower_bound_bytes": plan.lower_bound, "buffers": buffers}


def load_plan(stored: Mapping[str, Any]) -> tuple[MemoryProblem, MemoryPlan]:
    """Inverse of `store_plan`; alignments and fixed places are not kept. Raises ArchiveError where the values are none."""
    try:
        rows = [dict(zip(KEYS, row, strict=True)) for row in stored["buffers"]]
        buffers = tuple(Buffer(r["name"], r["bytes"], r["lower"], r["upper"], kind=r["kind"]) for r in rows)
        offsets = tuple((r["name"], r["offset"]) for r in rows)
        plan = MemoryPlan(offsets, stored["peak_bytes"], stored["lower_bound_bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArchiveError(
            "memory plan", "stored buffers", error, f"lists of {', '.join(KEYS)}", "build the archive again"
        ) from error
    return MemoryProblem(buffers), plan
