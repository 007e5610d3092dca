"""StreamBlocks: inverted bottlenecks whose inner tensors nothing else reads are computed row by row, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import tvm
from tvm import relax

from tvm_tinytrain.passes.foresee_memory import Foreseen, foresee_memory
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.stream_spec import Link, Stage, StreamSpec
from tvm_tinytrain.passes.kernels.streamed import streamed_block
from tvm_tinytrain.passes.liveness import Liveness, bytes_of, liveness
from tvm_tinytrain.passes.rewriting import (
    Rebuilder,
    bindings,
    callee,
    op_name,
    rebuild,
    shape_of,
    use_counts,
)


@dataclass(frozen=True)
class Block:
    """A chain that may stream: the indices of its bindings, the last of which becomes the kernel; its input and weights.

    ``folded`` is the binding of the normalised input, which the kernel computes by itself.
    """

    members: tuple[int, ...]
    x: relax.Var
    weights: tuple[relax.Expr, ...]
    spec: StreamSpec
    folded: int | None = None

    @property
    def end(self) -> int:
        """The binding that the kernel takes the place of."""
        return self.members[-1]

    @property
    def replaced(self) -> tuple[int, ...]:
        """The bindings that disappear."""
        return self.members[:-1] if self.folded is None else (self.folded, *self.members[:-1])


@tvm.transform.module_pass(opt_level=0, name="StreamBlocks")
class StreamBlocks:
    """``expand → depthwise → project [→ add x]``  →  ``streamed_block``; so do a stem with what follows it, and depthwise → 1×1.

    Only where it lowers the peak: the block that holds the fullest moment of a function streams, then the next one, until that moment
    lies elsewhere. Blocks between which the fullest moment lies become one kernel. No function goes below what another one
    needs anyway, because they share one arena. The arithmetic is the same.
    A block of stride one whose input dies overwrites it. ``masks`` and ``reuse``: CompressMasks and
    ReuseDeadOperands follow. ``apart``: bytes that one function leaves are of use even if another one needs
    them; its parts that are not on the way back go as low as ``predict``.
    """

    def __init__(self, *, masks: bool = False, reuse: bool = False, apart: bool = False) -> None:
        self.masks = masks
        self.reuse = reuse
        self.apart = apart

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites every Relax function that has such blocks."""
        names = sorted(gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function))
        choices = {n: stream_choices(mod, n, masks=self.masks, reuse=self.reuse) for n in names}
        floor = max((c[-1][0] for c in choices.values()), default=0)
        if self.apart and "predict" in choices:
            floor = choices["predict"][-1][0]
            choices = {
                n: stream_choices(mod, n, masks=self.masks, reuse=self.reuse, until=floor) for n in names
            }
        for name in names:
            blocks = next((b for peak, b in choices[name] if peak <= floor), choices[name][-1][1])
            if blocks:
                mod = _rewrite(mod, name, blocks)
        return mod


def stream_choices(
    mod: tvm.IRModule, name: str, *, masks: bool = False, reuse: bool = False, until: int | None = None
) -> list[tuple[int, list[Block]]]:
    """(peak bytes, blocks that stream), from none on, each with more blocks than the one before and a lower peak.

    With ``until``, blocks at less full moments follow, which lower the peak of a part of the function, down to so many bytes.
    """
    func = mod[name]
    blocks, chosen = find_blocks(mod, name), list[Block]()
    spans = foresee_memory(mod, name, masks=masks, reuse=reuse)
    profile = live_profile(func, spans, chosen)
    out = [(max(profile, default=0), list(chosen))]
    passed: set[int] = set()
    while profile:
        left = [(size, -i) for i, size in enumerate(profile) if i not in passed]
        if not left or (passed and max(left)[0] <= (until or 0)):
            return out
        fullest = -max(left)[1]
        block = next((b for b in blocks if b not in chosen and fullest in (*b.replaced, b.end)), None)
        if block is None:
            block = _merged(func, fullest, blocks)
            if block is None and until is not None:
                passed.add(fullest)
                continue
            if block is None:
                return out
            blocks = [b for b in blocks if not set(b.members) & set(block.members)] + [block]
        chosen = [b for b in chosen if not set(b.members) & set(block.members)] + [block]
        profile = live_profile(func, spans, chosen)
        if max(profile) < out[-1][0] or passed:
            out.append((max(profile), list(chosen)))
    return out


def _merged(func: relax.Function, end: int, blocks: Sequence[Block]) -> Block | None:
    """The block that ends at binding ``end`` in one kernel with the one in front of it, or else with the one behind it."""
    here = next((b for b in blocks if b.end == end), None)
    if here is None:
        return None
    everything, uses = bindings(func), use_counts(func)
    for first, second in [(b, here) for b in blocks] + [(here, b) for b in blocks]:
        between = everything[first.end].var
        fits = second.spec.direct and not second.spec.residual and second.spec.input_dtype == "float32"
        if fits and second.x == between and uses[between] == 1 and first.end < second.members[0]:
            spec = replace(first.spec, links=first.spec.links + second.spec.links, inplace=False)
            members, weights = first.members + second.members, first.weights + second.weights
            return Block(members, first.x, weights, spec, first.folded)
    return None


def live_profile(func: relax.Function, foreseen: Foreseen, chosen: Sequence[Block]) -> list[int]:
    """Live bytes at each binding if the chosen blocks stream: input and intermediate values, and the rows that the blocks keep."""
    everything, spans = bindings(func), foreseen.spans
    gone = {everything[i].var for b in chosen for i in b.replaced}
    until: dict[relax.Var, int] = {}
    for b in chosen:
        until[spans.owner(b.x)] = max(b.end, until.get(spans.owner(b.x), 0))
    ends = {everything[b.end].var: b.spec.inplace for b in chosen}
    taken = {var for var, inplace in ends.items() if inplace} | (foreseen.in_place - set(ends))
    inputs = set(func.params[: int(func.attrs["num_input"])])
    change = [0] * (len(everything) + 2)
    for owner, born in spans.born.items():
        if owner in gone or (born < 0 and owner not in inputs):
            continue
        last = max(foreseen.last_use(owner), until.get(owner, 0))
        change[max(born, 0) + (owner in taken)] += bytes_of(owner)
        change[min(last + 1, len(everything))] -= bytes_of(owner)
    rows = [(b.end, b.end, b.spec.workspace_bytes) for b in chosen]
    for first, last, size in (*rows, *foreseen.masks):
        change[first] += size
        change[last + 1] -= size
    return list(accumulate(change[: len(everything)]))


def find_blocks(mod: tvm.IRModule, name: str) -> list[Block]:
    """All chains of a function that may stream, in order; none shares a binding with another."""
    func = mod[name]
    everything = bindings(func)
    finder = _Finder(mod, everything, use_counts(func), liveness(func))
    blocks: list[Block] = []
    taken: set[int] = set()
    for index in range(len(everything)):
        block = finder.starting_at(index)
        if block is not None and not taken & set(block.members):
            blocks.append(block)
            taken |= set(block.members)
    return blocks


@dataclass
class _Finder:
    mod: tvm.IRModule
    everything: list[relax.VarBinding]
    uses: dict[relax.Var, int]
    spans: Liveness

    def __post_init__(self) -> None:
        self.place = {b.var: i for i, b in enumerate(self.everything)}
        self.users: dict[relax.Var, list[int]] = {}
        for index, b in enumerate(self.everything):
            for operand in _operands(b.value):
                self.users.setdefault(operand, []).append(index)

    def starting_at(self, index: int) -> Block | None:
        """The chain that begins with binding ``index``."""
        head = self._stage(index)
        if head is None:
            return None
        first: Stage | None = None
        members = [index]
        if not head.conv.depthwise:
            if head.conv.groups != 1:
                return None
            first, following = head, self._only_user(index)
            if following is None:
                return None
            members.append(following)
        depthwise = self._stage(members[-1])
        last = self._only_user(members[-1])
        project = self._stage(last) if last is not None else None
        if last is None or depthwise is None or project is None:
            return None
        conv = depthwise.conv
        if (
            not conv.depthwise
            or conv.dilation != (1, 1)
            or conv.stride[0] > conv.kernel[0]
            or not project.conv.pointwise
        ):
            return None
        members.append(last)
        return self._finish(members, StreamSpec((Link(first, depthwise, project),)))

    def _finish(self, members: list[int], spec: StreamSpec) -> Block | None:
        """Takes in the addition of x, the normalisation in front, and decides whether the result may overwrite x."""
        weights = tuple(w for i in members for w in list(self.everything[i].value.args[1].fields)[1:])
        x = self.everything[members[0]].value.args[1].fields[0]
        after = self._only_user(members[-1])
        if after is not None and op_name(self.everything[after].value) == "relax.add":
            other = [a for a in self.everything[after].value.args if a != self.everything[members[-1]].var]
            if spec.direct and len(other) == 1 and other[0] == x and spec.x_shape == spec.y_shape:
                members, spec = [*members, after], replace(spec, residual=True)
        source = self._normalised(x)
        if source is not None and spec.links[0].first is not None:
            image, scale, offset = source
            return Block(
                tuple(members),
                image,
                weights,
                replace(spec, input_dtype="uint8", scale=scale, offset=offset),
                self.place[x],
            )
        same_place = (
            spec.direct and spec.links[0].depthwise.conv.stride == (1, 1) and spec.x_shape == spec.y_shape
        )
        if same_place and isinstance(x, relax.Var) and self._dies_in(x, members):
            spec = replace(spec, inplace=True)
        return Block(tuple(members), x, weights, spec)

    def _dies_in(self, x: relax.Var, members: list[int]) -> bool:
        """Whether nothing but this chain reads the bytes of x."""
        owner = self.spans.owner(x)
        return (
            self.spans.born.get(owner, -1) >= 0
            and set(self.spans.reads[owner]) <= set(members)
            and (self.spans.last[owner] in members)
        )

    def _normalised(self, x: relax.Expr) -> tuple[relax.Var, float, float] | None:
        """The uint8 image behind x, with scale and offset."""
        if x not in self.place:
            return None
        value = self.everything[self.place[x]].value
        gv = callee(value)
        if gv is None or kernel_kind(self.mod[gv]) != "normalise":
            return None
        spec = kernel_spec(self.mod[gv])
        return value.args[1].fields[0], float(spec["scale"]), float(spec["offset"])

    def _stage(self, index: int) -> Stage | None:
        value = self.everything[index].value
        gv = callee(value)
        if gv is None or op_name(value) != "relax.call_tir" or kernel_kind(self.mod[gv]) != "conv2d":
            return None
        spec = kernel_spec(self.mod[gv])
        return Stage(Conv2DSpec.from_dict(spec), spec["bias"], spec["low"], spec["high"])

    def _only_user(self, index: int) -> int | None:
        """The binding that alone reads the result of binding ``index``."""
        var = self.everything[index].var
        users = self.users.get(var, [])
        return users[0] if self.uses.get(var, 0) == 1 and len(users) == 1 else None


def _operands(expr: Any) -> list[relax.Var]:
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Call):
        return [v for a in expr.args for v in _operands(a)]
    if isinstance(expr, relax.Tuple):
        return [v for f in expr.fields for v in _operands(f)]
    return _operands(expr.tuple_value) if isinstance(expr, relax.TupleGetItem) else []


def _rewrite(mod: tvm.IRModule, name: str, blocks: Sequence[Block]) -> tvm.IRModule:
    func = mod[name]
    ends = {b.end: b for b in blocks}
    inside = {i for b in blocks for i in b.replaced}

    def body(r: Rebuilder) -> relax.Expr:
        for index, b in enumerate(bindings(func)):
            if index in inside:
                continue
            if index not in ends:
                r.keep(b)
                continue
            block = ends[index]
            kernel = streamed_block(block.spec)
            args = [r.look(block.x), *(r.look(w) for w in block.weights)]
            if block.spec.inplace:
                r.env[b.var] = r.kernel_inplace(kernel, args, [0], b.var.name)
            else:
                r.env[b.var] = r.kernel(kernel, args, shape_of(b.var), b.var.name)
        return r.look(func.body.body)

    return rebuild(mod, name, body, attrs=dict(func.attrs))
