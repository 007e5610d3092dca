"""NarrowInputGrads: nothing reads the channels of an adjoint that the earliest trained layer does not train."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.s_tir import Schedule, ScheduleError
from tvm.sym import Analyzer

from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.listed import conv2d_input_grad_listed, has_listed_form
from tvm_tinytrain.passes.liveness import Liveness, inplace_indices, liveness
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, op_name, operands, rebuild

_CHANNELS = "channels_"
_ENTRY = "accumulate"
_GRADIENTS = {"conv2d_weight_grad": 1, "linear_weight_grad": 1, "bias_grad": 0}
"""Kinds of kernels that end an adjoint's way, and the operand that they read it from, at the listed channels only."""
_CORRECTION = "conv2d_input_grad_rows"


@tvm.transform.module_pass(opt_level=0, name="NarrowInputGrads")
class NarrowInputGrads:
    """``dx = input_grad(dy, w)``  →  ``dx = input_grad(dy, w); dx[channels] = input_grad(dy, w)[channels]`` of the layer in front.

    In a task-adaptive library one of the two calls runs: the second one where the layer in front is the earliest that is trained
    (`adaptive.call_guards`), the first one else. As the IR stands, both run and agree. The pass asks that on the way from dx to that
    layer's gradients every kernel keeps channels apart and that no other kernel that can run then reads it.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``accumulate``."""
        if _ENTRY not in {gv.name_hint for gv in mod.functions}:
            return mod
        func = mod[_ENTRY]
        found = narrowable(mod, func)
        if not found:
            return mod
        return rebuild(mod, _ENTRY, partial(_emit, func, found), attrs=dict(func.attrs))


def _emit(func: relax.Function, found: Mapping[relax.Var, relax.Var], r: Rebuilder) -> relax.Expr:
    for b in bindings(func):
        r.keep(b)
        channels = found.get(b.var)
        if channels is None:
            continue
        dy, weight = (r.look(a) for a in b.value.args[1].fields)
        spec = Conv2DSpec.from_dict(kernel_spec(r.mod[callee(b.value)]))
        kernel = conv2d_input_grad_listed(spec, int(channels.ty.shape[0]))
        r.env[b.var] = r.kernel_inplace(kernel, [dy, weight, channels, r.env[b.var]], [3], b.var.name)
    return r.look(func.body.body)


def narrowable(mod: tvm.IRModule, func: relax.Function) -> dict[relax.Var, relax.Var]:
    """{result of an input gradient: channel list of the layer in front} where the list is all that is read if that layer is the
    earliest trained one."""
    spans = liveness(func)
    lists = {p: int(p.name.removeprefix(_CHANNELS)) for p in func.params if p.name.startswith(_CHANNELS)}
    by_layer = {layer: p for p, layer in lists.items()}
    serves = _serves(func, spans, lists)
    found = {}
    for index, b in enumerate(bindings(func)):
        gv = callee(b.value)
        if gv is None or kernel_kind(mod[gv]) != "conv2d_input_grad" or not serves[index]:
            continue
        layer = max(serves[index])
        if not has_listed_form(Conv2DSpec.from_dict(kernel_spec(mod[gv]))):
            continue
        if _only_the_list_is_read(mod, func, index, layer, serves, spans, by_layer[layer]):
            found[b.var] = by_layer[layer]
    return found


def _serves(func: relax.Function, spans: Liveness, lists: Mapping[relax.Var, int]) -> list[frozenset[int]]:
    """For each binding the layers whose accumulated gradients depend on its result."""
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


def _only_the_list_is_read(
    mod: tvm.IRModule,
    func: relax.Function,
    start: int,
    layer: int,
    serves: list[frozenset[int]],
    spans: Liveness,
    channels: relax.Var,
) -> bool:
    """Whether the adjoint that binding ``start`` makes is read at ``channels`` only when ``layer`` is the earliest trained one."""
    everything = bindings(func)
    partial_values = {spans.owner(everything[start].var)}
    for index in range(start + 1, len(everything)):
        b = everything[index]
        gv = callee(b.value)
        if gv is None or not any(reached >= layer for reached in serves[index]):
            continue  # another name, or a call that does not run then
        args = list(b.value.args[1].fields)
        places = [
            i for i, a in enumerate(args) if isinstance(a, relax.Var) and spans.owner(a) in partial_values
        ]
        if not places:
            continue
        kernel = mod[gv]
        kind = str(kernel_kind(kernel))
        if kind in _GRADIENTS:
            if places != [_GRADIENTS[kind]] or not any(a.same_as(channels) for a in args):
                return False
        elif kind == _CORRECTION:
            if places != [4]:
                return False
        elif all(keeps_elements_apart(kernel, place) for place in places):
            partial_values.add(spans.owner(b.var))
        else:
            return False
    return True


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
