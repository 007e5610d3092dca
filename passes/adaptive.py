"""What a task-adaptive program needs to know of itself: which calls serve which candidate, and a memory plan for every depth.

A call of the backward pass is executed only if a selected layer's gradient depends on it. The activations' plan depends on the
earliest selected layer, its *depth*: for each depth the plan is made at build time, as if every candidate from there on were selected,
with the full planner and its validator; the device looks it up. (A plan per subset would need a planner on the device for at most the
saved inputs of unselected layers in between; the benchmark states that loss.) The trained rows lie behind the activations, packed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from tvm_tinytrain.passes.plan_memory import ArenaPlan, plan_arena
from tvm_tinytrain.passes.program import Entry, KernelCall, Program

ALWAYS = -1
"""Guard of a call that every run of its entry executes."""
TRAINING = ("accumulate", "step")
"""Entries that run a backward pass; a library's program has one of them."""


@dataclass(frozen=True)
class Guard:
    """When a call runs. ``rows``: position of the candidate whose trained rows it works on, or None. ``needed``: bit mask of the
    candidates whose gradients depend on it, or ALWAYS. ``only_at``, ``not_at``: positions of candidates of which one must be, or none
    may be, the earliest trained one: of the calls that make the same adjoint one makes all of it, the others trained channels only."""

    rows: int | None
    needed: int
    only_at: tuple[int, ...] = ()
    not_at: tuple[int, ...] = ()

    def runs(self, selected: int) -> bool:
        """Whether the call runs when the candidates of the bit mask ``selected`` are trained."""
        earliest = (selected & -selected).bit_length() - 1
        if (self.only_at and earliest not in self.only_at) or earliest in self.not_at:
            return False
        own = self.rows is None or bool(selected >> self.rows & 1)
        return own and (self.needed == ALWAYS or bool(self.needed & selected))


@dataclass(frozen=True)
class RowTensor:
    """A tensor with one row per trained channel of a candidate: bytes per row, and its name in the program."""

    name: str
    candidate: int
    row_bytes: int


@dataclass(frozen=True)
class AdaptivePlan:
    """Guards per entry and call; one arena plan per depth (the last one for the empty selection); the row tensors in order.

    ``activation_bytes[d]`` is where the rows begin at depth d: the largest peak over all entries.
    """

    candidates: tuple[int, ...]
    guards: Mapping[str, tuple[Guard, ...]]
    depths: tuple[ArenaPlan, ...]
    rows: tuple[RowTensor, ...]

    @property
    def training_entry(self) -> str:
        """The entry that runs the backward pass: "accumulate", or "step" where every gradient is applied where it is made."""
        return next(name for name in TRAINING if name in self.guards)

    @property
    def activation_bytes(self) -> tuple[int, ...]:
        """Bytes in front of the trained rows, by depth."""
        return tuple(plan.arena_bytes for plan in self.depths)

    def ever_runs(self, guard: Guard) -> bool:
        """Whether a call runs for any selection; of those that begin with a candidate, all later ones ask for the most calls."""
        count = len(self.candidates)
        return any(guard.runs(((1 << count) - 1) >> depth << depth) for depth in range(count + 1))

    def channel_bytes(self, candidate: int) -> int:
        """Bytes that one more trained channel of a candidate takes."""
        return sum(r.row_bytes for r in self.rows if r.candidate == candidate)


def plan_adaptive(
    program: Program,
    workspaces: Mapping[str, int],
    candidates: Sequence[int],
    rows_of: Mapping[str, int],
    capacity: int | None,
    select_scratch: int = 0,
    listed: Collection[str] = (),
) -> AdaptivePlan:
    """Analyses a program whose row tensors are ``rows_of`` = {storage: layer id}; ``select_scratch`` is bytes for the selection,
    ``listed`` names the kernels that make an adjoint for a candidate's trained channels only (`narrow_input_grads`).

    Raises BudgetError where not even the plan of the empty selection fits into ``capacity``.
    """
    position = {layer: i for i, layer in enumerate(candidates)}
    owner = {name: position[layer] for name, layer in rows_of.items()}
    guards = {e.name: call_guards(e, owner, listed) for e in program.entries}
    rows = tuple(
        RowTensor(s.name, owner[s.name], s.bytes // s.shape[0]) for s in program.storages if s.name in owner
    )
    frozen = tuple(s for s in program.storages if s.name not in owner)
    results = [e.result for e in program.entries if e.result is not None]
    depths = []
    for depth in range(len(candidates) + 1):
        selected = ((1 << len(candidates)) - 1) >> depth << depth
        entries = []
        for entry in program.entries:
            if (entry.name in (*TRAINING, "apply") and not selected) or (entry.name == "fisher" and selected):
                continue  # potentials are measured before anything is trained
            calls = [
                (call, guard)
                for call, guard in zip(entry.calls, guards[entry.name], strict=True)
                if guard.runs(selected)
            ]
            stripped = tuple(
                KernelCall(c.kernel, tuple(a for a in c.args if a not in owner), c.note, c.outputs, c.updates)
                for c, _ in calls
            )
            entries.append(Entry(entry.name, stripped, entry.inputs, entry.result))
        limit = capacity if depth == len(candidates) else None
        stage = Program(frozen, tuple(entries))
        scratch = {"fisher": select_scratch}
        depths.append(plan_arena(stage, workspaces, capacity=limit, scratch=scratch, fixed_results=results))
    return AdaptivePlan(tuple(candidates), guards, tuple(depths), rows)


def call_guards(entry: Entry, owner: Mapping[str, int], listed: Collection[str] = ()) -> tuple[Guard, ...]:
    """Guards of an entry's calls, found by walking it backwards from its result and from the trained rows that it changes."""
    needed: dict[str, int] = {entry.result: ALWAYS} if entry.result is not None else {}
    guards: list[Guard] = []
    for call in reversed(entry.calls):
        touched = [owner[a] for a in call.args if a in owner]
        rows = touched[0] if touched else None
        activations = [a for a in call.args if "." in a]
        trains = any(u in owner for u in call.updates) or entry.name == "fisher"
        mask = 0
        if trains:
            mask = ALWAYS if rows is None else 1 << rows
        for name in call.outputs:
            mask = _join(mask, needed.get(name, 0))
        if not trains and not call.outputs:  # e.g. the optimizer's bias corrections
            mask = ALWAYS
        guards.append(Guard(rows, mask))
        for name in activations:
            needed[name] = _join(needed.get(name, 0), mask)
    return _one_of_two(entry, guards[::-1], listed)


def _one_of_two(entry: Entry, guards: list[Guard], listed: Collection[str]) -> tuple[Guard, ...]:
    """Where the earliest trained layer is one of those in front of a whole call, calls of ``listed`` run in its place: the one for
    that layer's channels and those for the later layers among them."""
    groups: dict[int, list[int]] = {}
    for index, call in enumerate(entry.calls):
        if call.kernel in listed:
            whole = next(
                i
                for i in reversed(range(index))
                if entry.calls[i].kernel not in listed and set(entry.calls[i].outputs) & set(call.outputs)
            )
            groups.setdefault(whole, []).append(index)
    for whole, members in groups.items():
        layers = sorted(r for r in (guards[i].rows for i in members) if r is not None)
        guards[whole] = replace(guards[whole], not_at=tuple(layers))
        for i in members:
            own = guards[i].rows
            guards[i] = replace(guards[i], only_at=tuple(r for r in layers if own is not None and r <= own))
    return tuple(guards)


def _join(a: int, b: int) -> int:
    return ALWAYS if ALWAYS in (a, b) else a | b
