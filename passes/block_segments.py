"""Segments of a forward pass that could be computed again on the way back, from one tensor that is kept.

An analysis: it changes nothing. A segment lies between two bindings at which the forward pass holds a single tensor, such as a block's
input and its output; what lives in between and is read on the way back is what a recomputation saves.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import tvm
from tvm import relax

from tvm_tinytrain.passes.kernels.builder import executed_macs
from tvm_tinytrain.passes.liveness import Liveness, bytes_of, inplace_indices, liveness
from tvm_tinytrain.passes.rewriting import bindings, callee, op_name, operands
from tvm_tinytrain.passes.state import get_roles


@dataclass(frozen=True)
class Segment:
    """Bindings ``again`` (indices, in order) make the tensors ``owners`` once more, in front of binding ``before``.

    ``first`` is the segment's first binding and names it: it stays where it is when other segments are computed again.
    ``macs`` are the multiply-accumulates of the bindings.
    """

    first: int
    again: tuple[int, ...]
    before: int
    owners: tuple[relax.Var, ...]
    macs: int


@dataclass(frozen=True)
class _Cut:
    """After binding ``after`` the forward pass holds the bytes of ``owner`` only."""

    after: int
    owner: relax.Var


def find_segments(
    mod: tvm.IRModule, name: str, until: Mapping[relax.Var, int] | None = None
) -> list[Segment]:
    """The segments of function ``name`` that save something, in order; none where the function has no backward pass.

    ``until`` says for owners of bytes whose last readers will read one bit per element instead which binding reads the bytes last.
    """
    func = mod[name]
    everything, spans = bindings(func), liveness(func)
    end = _last_forward(func, spans)
    if end is None:
        return []
    cuts = _cuts(mod, func, spans, end)
    kept = _keep(cuts, spans, end)
    found = (
        _segment(mod, everything, spans, end, a.after, b, until or {}) for a, b in itertools.pairwise(kept)
    )
    return [s for s in found if s is not None]


def _last_forward(func: relax.Function, spans: Liveness) -> int | None:
    """The binding that makes the loss, the first of several results."""
    defs = {b.var: (i, b.value) for i, b in enumerate(bindings(func))}
    expr = func.body.body
    while expr in defs and isinstance(defs[expr][1], (relax.Var, relax.Tuple)):
        expr = defs[expr][1]
    if not isinstance(expr, relax.Tuple) or len(expr.fields) < 2 or expr.fields[0] not in defs:
        return None
    return defs[expr.fields[0]][0]


def _cuts(mod: tvm.IRModule, func: relax.Function, spans: Liveness, end: int) -> list[_Cut]:
    """Every place in the forward pass where a single tensor is enough to go on, the input's first; the last place of each tensor."""
    roles = get_roles(mod)
    last: dict[relax.Var, int] = {}
    for owner, reads in spans.reads.items():
        forward = [i for i in reads if i <= end]
        if forward and (spans.born.get(owner, -1) >= 0 or roles.get(owner.name) == "input"):
            last[owner] = max(forward)
    found: dict[relax.Var, _Cut] = {}
    for after in range(-1, end):
        live = [o for o, until in last.items() if spans.born[o] <= after < until]
        if len(live) == 1:
            found[live[0]] = _Cut(after, live[0])
    return list(found.values())


def _keep(cuts: list[_Cut], spans: Liveness, end: int) -> list[_Cut]:
    """The cuts between segments: of two neighbours without anything inside, the tensor between them is computed again if it is large.

    It is where what follows is smaller; of equally large tensors in a row every second one is kept.
    """
    if not cuts:
        return []
    kept, inside = [cuts[0]], 0
    for here, after in itertools.pairwise(cuts[1:]):
        size, following = bytes_of(here.owner), bytes_of(after.owner)
        empty = not _between(spans, here.after, after)
        merges = size > following if inside else size >= following
        if empty and merges and not _between(spans, kept[-1].after, here, but=cuts):
            inside += 1
            continue
        kept.append(here)
        inside = 0
    return [*kept, *cuts[-1:]] if len(cuts) > 1 else kept


def _between(spans: Liveness, start: int, stop: _Cut, but: list[_Cut] | None = None) -> list[relax.Var]:
    """Tensors that are born behind binding ``start`` and up to ``stop`` and are read, ``stop``'s and those of ``but`` left out."""
    left_out = {stop.owner, *(c.owner for c in but or [])}
    return [o for o, born in spans.born.items() if start < born <= stop.after and o not in left_out]


def _segment(
    mod: tvm.IRModule,
    everything: list[relax.VarBinding],
    spans: Liveness,
    end: int,
    start: int,
    stop: _Cut,
    until: Mapping[relax.Var, int],
) -> Segment | None:
    """The segment behind binding ``start`` and up to ``stop``, None where it saves nothing or cannot be computed again."""
    inside = set(_between(spans, start, stop))
    backward = {o: [i for i in spans.reads.get(o, ()) if end < i <= until.get(o, i)] for o in inside}
    wanted = {o for o, reads in backward.items() if reads}
    if not wanted or any(spans.last[o] >= len(everything) for o in wanted):
        return None
    before = min(min(backward[o]) for o in wanted)
    again: list[int] = []
    needed = set(wanted)
    for i in range(stop.after, start, -1):
        b = everything[i]
        if spans.owner(b.var) not in needed:
            continue
        again.append(i)
        needed |= {spans.owner(v) for v in operands(b.value) if spans.owner(v) in inside}
    again.reverse()
    read = {spans.owner(v) for i in again for v in operands(everything[i].value) if isinstance(v, relax.Var)}
    changed = [i for i in range(end + 1, before) if _changes(everything[i], spans) & read]
    before = min([before, *changed])
    if before <= end or any(isinstance(everything[i].var.ty, tvm.ir.TupleType) for i in again):
        return None
    macs = sum(executed_macs(mod[gv]) for i in again if (gv := callee(everything[i].value)) is not None)
    return Segment(
        start + 1, tuple(again), before, tuple(o for o in spans.born if o in needed & inside), macs
    )


def _changes(b: relax.VarBinding, spans: Liveness) -> set[relax.Var]:
    """Owners of the bytes that a binding overwrites."""
    if op_name(b.value) != "relax.call_tir_inplace":
        return set()
    args = list(b.value.args[1].fields)
    return {spans.owner(args[i]) for i in inplace_indices(b.value) if i >= 0}
