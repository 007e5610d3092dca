"""PlanMemory: every tensor and workspace gets its place in one arena, or in flash.

The arena begins with what must keep its place (trained parameters, optimizer state, label, loss), then the input, which both
``predict`` and ``step`` expect at the same offset; above them each entry's activations are planned on their own, because entries never
run at the same time. The arena is as large as the largest entry's plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.memory import plan_memory, validate_plan
from tvm_tinytrain.memory.lower_bound import lower_bound_peak
from tvm_tinytrain.passes.program import PERSISTENT, Entry, Program, Storage
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem

ALIGN = 8


@dataclass(frozen=True)
class ArenaPlan:
    """Offsets in bytes.

    ``fixed``: persistent tensors and inputs; ``entries``: per entry its problem, its plan, and the name of each call's workspace
    buffer (None where the kernel needs none). ``arena_bytes`` is the peak over all entries.
    """

    fixed: dict[str, int]
    problems: dict[str, MemoryProblem]
    plans: dict[str, MemoryPlan]
    workspaces: dict[str, tuple[str | None, ...]]
    arena_bytes: int
    lower_bound: int

    def offset(self, entry: str, name: str) -> int:
        """The offset of a tensor as ``entry`` sees it."""
        return self.fixed[name] if name in self.fixed else self.plans[entry][name]


def plan_arena(
    program: Program,
    workspaces: Mapping[str, int],
    *,
    capacity: int | None = None,
    scratch: Mapping[str, int] | None = None,
    fixed_results: Collection[str] | None = None,
) -> ArenaPlan:
    """Plans and validates the arena of a program.

    ``workspaces`` are bytes by kernel name; ``scratch`` bytes by entry that something needs after the entry's last call, beside its
    Fisher potentials (planned as the buffer ``<entry>.scratch``). ``fixed_results`` are the results that keep one place for good
    (default: the losses; the output of ``predict`` is planned). Raises BudgetError where ``capacity`` bytes do not suffice, naming the
    tensors that are alive at the peak, of the entry that needs most.
    """
    fixed: dict[str, int] = {}
    top = 0
    results = (
        {e.result for e in program.entries if e.name != "predict"}
        if fixed_results is None
        else set(fixed_results)
    )
    order = [s for s in program.storages if s.role in PERSISTENT or s.name in results]
    order += [s for s in program.storages if s.role == "input"]
    for s in order:
        fixed[s.name] = top
        top += _round(s.bytes)
    problems, used = {}, {}
    for entry in program.entries:
        problem, names = entry_problem(program, entry, fixed, workspaces, (scratch or {}).get(entry.name, 0))
        problems[entry.name] = problem if capacity is None else MemoryProblem(problem.buffers, capacity)
        used[entry.name] = names
    found = {}
    for name in sorted(
        problems, key=lambda n: -lower_bound_peak(problems[n]).bytes
    ):  # an error names the most
        try:
            found[name] = plan_memory(problems[name])
        except BudgetError as error:
            raise BudgetError(
                f"plan memory ({name})", error.thing, error.found, error.allowed, error.hint
            ) from error
        validate_plan(problems[name], found[name])
    plans = {name: found[name] for name in problems}
    peak = _round(max(p.peak for p in plans.values()))
    arena = ArenaPlan(fixed, problems, plans, used, peak, max(p.lower_bound for p in plans.values()))
    check_ends(arena, arena.arena_bytes)
    return arena


def check_ends(arena: ArenaPlan, size: int) -> None:
    """Raises PlanError for what ends behind ``size`` bytes: a buffer of any entry."""
    for entry, problem in arena.problems.items():
        for buffer in problem.buffers:
            end = arena.plans[entry][buffer.name] + buffer.size
            if end > size:
                thing = f"the end of {buffer.name}"
                hint = "report this network: the arena is too small for its own plan"
                raise PlanError(f"plan memory ({entry})", thing, end, f"at most {size} bytes", hint)


def entry_problem(
    program: Program,
    entry: Entry,
    fixed: Mapping[str, int],
    workspaces: Mapping[str, int],
    scratch: int = 0,
) -> tuple[MemoryProblem, tuple[str | None, ...]]:
    """The memory problem of one entry: step t is its t-th call; step 0 is the caller writing the inputs."""
    last = len(entry.calls) + 1
    end = last + (2 if scratch else 1)
    first_use: dict[str, int] = {}
    final_use: dict[str, int] = {}
    for t, call in enumerate(entry.calls, start=1):
        for name in call.args:
            first_use.setdefault(name, t)
            final_use[name] = t
    if entry.result is not None:
        final_use[entry.result] = last
    buffers = []
    for s in program.storages:
        if s.name in fixed:
            if s.role == "input":
                if s.name in entry.inputs:
                    buffers.append(_buffer(s, 0, final_use.get(s.name, 0) + 1, fixed[s.name]))
            else:
                buffers.append(_buffer(s, 0, end, fixed[s.name]))
        elif (
            s.role == "fisher" and s.name in first_use
        ):  # kept from call to call, and for the selection after them
            buffers.append(_buffer(s, 0, end, None))
        elif s.role == "activation" and s.name in first_use:
            buffers.append(_buffer(s, first_use[s.name], final_use[s.name] + 1, None))
    names: list[str | None] = []
    for t, call in enumerate(entry.calls, start=1):
        size = workspaces.get(call.kernel, 0)
        names.append(f"{entry.name}.workspace_{t}" if size else None)
        if size:
            buffers.append(Buffer(f"{entry.name}.workspace_{t}", _round(size), t, t + 1, ALIGN, "workspace"))
    if scratch:
        buffers.append(
            Buffer(f"{entry.name}.scratch", _round(scratch), last + 1, last + 2, ALIGN, "workspace")
        )
    return MemoryProblem(tuple(buffers)), tuple(names)


def _buffer(s: Storage, lower: int, upper: int, offset: int | None) -> Buffer:
    kind = {"param": "weight", "state": "optimizer state", "grad": "gradient"}.get(s.role, s.role)
    return Buffer(s.name, _round(s.bytes), lower, upper, ALIGN, kind, offset=offset)


def _round(size: int) -> int:
    return (size + ALIGN - 1) // ALIGN * ALIGN
