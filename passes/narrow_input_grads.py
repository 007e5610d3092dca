"""NarrowInputGrads: nothing reads the channels of an adjoint that the earliest trained layer does not train."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.s_tir import Schedule, ScheduleError
from tvm.sym import Analyzer

from tvm_tinytrain.passes.adaptive import TRAINING
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.listed import conv2d_input_grad_listed, has_listed_form
from tvm_tinytrain.passes.liveness import Liveness, inplace_indices, liveness
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, op_name, operands, rebuild

_CHANNELS = re.compile(r"channels_([0-9]+)")
_GRADIENTS = {"conv2d_weight_grad": 1, "linear_weight_grad": 1, "bias_grad": 0}
"""Kinds of kernels that end an adjoint's way, and the operand that they read it from, at the listed channels only."""
_CORRECTION = "conv2d_input_grad_rows"
_INPUT_GRAD = "conv2d_input_grad"


@tvm.transform.module_pass(opt_level=0, name="NarrowInputGrads")
class NarrowInputGrads:
    """``dx = input_grad(dy, w)``  →  ``dx = input_grad(dy, w); dx[channels] = input_grad(dy, w)[channels]`` of the layer in front.

    In a task-adaptive library one of the two calls runs: the second one where the layer in front is the earliest that is trained
    (`adaptive.call_guards`), the first one else. As the IR stands, both run and agree. The pass asks that on the way from dx to that
    layer's gradients every kernel keeps channels apart and that no other kernel that can run then reads it. A depthwise layer keeps
    them apart too: where the layer in front of it is the earliest, dx is read at the lists of both, and a call for each follows.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites the function with the backward pass."""
        names = {gv.name_hint for gv in mod.functions}
        for name in TRAINING:
            found = narrowable(mod, mod[name]) if name in names else {}
            if found:
                func = mod[name]
                mod = rebuild(mod, name, partial(_emit, func, found), attrs=dict(func.attrs))
        return mod


def _emit(func: relax.Function, found: Mapping[relax.Var, tuple[relax.Var, ...]], r: Rebuilder) -> relax.Expr:
    for b in bindings(func):
        r.keep(b)
        for channels in found.get(b.var, ()):
            dy, weight = (r.look(a) for a in b.value.args[1].fields)
            spec = Conv2DSpec.from_dict(kernel_spec(r.mod[callee(b.value)]))
            kernel = conv2d_input_grad_listed(spec, int(channels.ty.shape[0]))
            r.env[b.var] = r.kernel_inplace(kernel, [dy, weight, channels, r.env[b.var]], [3], b.var.name)
    return r.look(func.body.body)


def narrowable(mod: tvm.IRModule, func: relax.Function) -> dict[relax.Var, tuple[relax.Var, ...]]:
    """{result of an input gradient: channel lists of the layers in front, ascending}.

    Where one of these layers is the earliest trained one, its list and those of the later ones among them are all that is read.
    """
    spans = liveness(func)
    lists = {p: int(match[1]) for p in func.params if (match := _CHANNELS.fullmatch(p.name))}
    by_layer = {layer: p for p, layer in lists.items()}
    serves = _serves(func, spans, lists)
    everything = bindings(func)
    found: dict[relax.Var, tuple[int, ...]] = {}
    for index in reversed(
        range(len(everything))
    ):  # those nearer to the input first: others ask what they read
        b = everything[index]
        gv = callee(b.value)
        if gv is None or kernel_kind(mod[gv]) != _INPUT_GRAD or not serves[index]:
            continue
        if not has_listed_form(Conv2DSpec.from_dict(kernel_spec(mod[gv]))):
            continue
        walk = _Walk(mod, everything, serves, spans, lists, found)
        group: tuple[int, ...] = ()
        for layer in sorted(serves[index], reverse=True):
            if walk.lists_read(index, layer) != {layer, *group}:
                break
            group = (layer, *group)
        if group:
            found[b.var] = group
    return {var: tuple(by_layer[layer] for layer in group) for var, group in found.items()}


def _serves(func: relax.Function, spans: Liveness, lists: Mapping[relax.Var, int]) -> list[frozenset[int]]:
    """For each binding the layers whose gradients depend on its result."""
    params = set(func.params)
    needed: dict[relax.Var, frozenset[int]] = {}
    out: list[frozenset[int]] = []
    for b in reversed(bindings(func)):
        args = [a for a in operands(b.value) if isinstance(a, relax.Var)]
        serves = needed.get(spans.owner(b.var), frozenset())
        if op_name(b.value) == "relax.call_tir_inplace":
            fields = list(b.value.args[1].fields)
            changed = {spans.owner(fields[i]) for i in inplace_indices(b.value) if i >= 0}
            if changed & params:
                serves |= {lists[a] for a in args if a in lists}
        out.append(serves)
        if callee(b.value) is None:
            continue
        for a in args:
            needed[spans.owner(a)] = needed.get(spans.owner(a), frozenset()) | serves
    return out[::-1]


@dataclass(frozen=True)
class _Walk:
    """What is read of an adjoint; ``found`` are the groups of input gradients behind it."""

    mod: tvm.IRModule
    everything: Sequence[relax.VarBinding]
    serves: Sequence[frozenset[int]]
    spans: Liveness
    lists: Mapping[relax.Var, int]
    found: Mapping[relax.Var, tuple[int, ...]]

    def lists_read(self, start: int, layer: int) -> set[int] | None:
        """Layers at whose lists binding ``start`` is read when ``layer`` is the earliest trained one; None: elsewhere too."""
        partial_values = {self.spans.owner(self.everything[start].var)}
        read: set[int] = set()
        for index in range(start + 1, len(self.everything)):
            b = self.everything[index]
            gv = callee(b.value)
            if gv is None or not any(reached >= layer for reached in self.serves[index]):
                continue  # another name, or a call that does not run then
            args = list(b.value.args[1].fields)
            places = [
                i
                for i, a in enumerate(args)
                if isinstance(a, relax.Var) and self.spans.owner(a) in partial_values
            ]
            if not places:
                continue
            own = next((self.lists[a] for a in args if a in self.lists), None)
            at = self._read_by(self.mod[gv], b, places, own, layer)
            if at is None:
                return None
            read |= at
            if not at and kernel_kind(self.mod[gv]) != _CORRECTION:
                partial_values.add(self.spans.owner(b.var))
        return read

    def _read_by(
        self, kernel: tirx.PrimFunc, b: relax.VarBinding, places: list[int], own: int | None, layer: int
    ) -> set[int] | None:
        """Layers at whose lists one call reads; nothing for a call that hands each element on."""
        kind = str(kernel_kind(kernel))
        if kind in _GRADIENTS:
            return {own} if places == [_GRADIENTS[kind]] and own is not None else None
        if kind == _CORRECTION and places == [4]:
            return set()
        if kind in (_CORRECTION, _INPUT_GRAD) and places == [0] and _is_depthwise(kernel):
            if kind == _CORRECTION:
                return {own} if own is not None else None
            group = self.found.get(b.var, ())
            return {g for g in group if g >= layer} if layer in group else None
        return set() if all(keeps_elements_apart(kernel, place) for place in places) else None


def _is_depthwise(kernel: tirx.PrimFunc) -> bool:
    return Conv2DSpec.from_dict(kernel_spec(kernel)).depthwise


def keeps_elements_apart(kernel: tirx.PrimFunc, position: int) -> bool:
    """Whether each element of the kernel's last parameter depends on no element of the operand but the one in the same place of
    the row-major order."""
    if len(kernel.params) <= position + 1:
        return False
    schedule = Schedule(kernel)
    try:
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        for block in blocks[:-1]:
            schedule.compute_inline(block)
    except ScheduleError:
        return False
    body = schedule.mod["main"]
    operand, result = body.params[position], body.params[-1]
    stores: list[Any] = []
    loads: list[Any] = []
    tvm_ffi.structural_walk(body.body, [(tirx.BufferStore, stores.append), (tvm.ir.TensorLoad, loads.append)])
    if len(stores) != 1 or not stores[0].buffer.same_as(result):
        return False
    reads = [load for load in loads if load.source.same_as(operand)]
    place = _flat(stores[0].indices, result)
    ranges = _axes(body)
    analyzer = Analyzer()
    for variable, extent in ranges:
        analyzer.bind(variable, tvm.ir.Range(0, extent))
    return bool(reads) and all(analyzer.can_prove_equal(_flat(r.indices, operand), place) for r in reads)


def _flat(indices: Any, buffer: Any) -> Any:
    total: Any = 0
    for index, extent in zip(indices, buffer.shape, strict=True):
        total = total * int(extent) + index
    return total


def _axes(func: tirx.PrimFunc) -> list[tuple[Any, int]]:
    """Variables of all blocks' axes, with their extents."""
    found: list[tuple[Any, int]] = []

    def visit(block: Any) -> None:
        found.extend((v.var, int(v.dom.extent)) for v in block.iter_vars)

    tvm_ffi.structural_walk(func.body, [(tvm.s_tir.SBlock, visit)])
    return found
