"""The lowered module as a program: tensors with storage, and for each entry the kernels it calls in order.

This is an analysis: it reads the module and changes nothing. The memory planner and the emitters work on its answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax

from tvm_tinytrain.errors import KernelError, UnsupportedOperatorError
from tvm_tinytrain.passes.lower_graph import ENTRY_POINTS
from tvm_tinytrain.passes.rewriting import bindings, callee, dtype_of, op_name, shape_of
from tvm_tinytrain.passes.state import get_roles

ITEM_BYTES = {
    "float32": 4,
    "int32": 4,
    "uint8": 1,
    "int8": 1,
    "bool": 1,
    "float16": 2,
    "int64": 8,
    "uint32": 4,
}
PERSISTENT = ("param", "state", "grad", "plan", "label", "loss")
"""Roles whose tensors keep their place in the arena for the library's whole life."""


@dataclass(frozen=True)
class Storage:
    """A tensor that occupies memory: one block for all views and in-place results of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class KernelCall:
    """One call: the kernel's function name and the storage of each of its arguments, in order of its parameters.

    ``note`` names the result and its shape, for the comment beside the call in the emitted C. ``outputs`` are the activations that
    the call writes, in place or fresh; ``updates`` are the parameters, states and accumulated gradients that it changes.
    """

    kernel: str
    args: tuple[str, ...]
    note: str
    outputs: tuple[str, ...] = ()
    updates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """An entry of the library: its calls, and the storage that holds its result (output or loss)."""

    name: str
    calls: tuple[KernelCall, ...]
    inputs: tuple[str, ...]
    result: str | None


@dataclass(frozen=True)
class Program:
    """All storages by name and all entries in order."""

    storages: tuple[Storage, ...]
    entries: tuple[Entry, ...]

    def storage(self, name: str) -> Storage:
        """The storage called ``name``."""
        return next(s for s in self.storages if s.name == name)


def analyse_program(mod: tvm.IRModule) -> Program:
    """The program of a lowered module (only ``call_tir``, ``call_tir_inplace``, views and tuples are left in it)."""
    names = {gv.name_hint for gv in mod.functions}
    roles = get_roles(mod)
    storages: dict[str, Storage] = {}
    entries = [_entry(mod, name, roles, storages) for name in ENTRY_POINTS if name in names]
    return Program(tuple(storages.values()), tuple(entries))


def _entry(mod: tvm.IRModule, name: str, roles: dict[str, str], storages: dict[str, Storage]) -> Entry:
    func = mod[name]
    place: dict[relax.Var, str] = {}
    fields: dict[relax.Var, list[str]] = {}
    calls: list[KernelCall] = []
    inputs = []
    used = {o for b in bindings(func) for o in _vars(b.value)}
    for param in func.params:
        role = roles.get(param.name, "const")
        if param not in used and role not in ("param", "state", "grad", "input", "label"):
            continue
        place[param] = param.name
        storages.setdefault(param.name, Storage(param.name, shape_of(param), dtype_of(param), role))
        if role in ("input", "label"):
            inputs.append(param.name)

    def new(var: str, shape: tuple[int, ...], dtype: str) -> str:
        unique = f"{name}.{var}"
        while unique in storages:
            unique += "_"
        storages[unique] = Storage(unique, shape, dtype, "activation")
        return unique

    for b in bindings(func):
        value = b.value
        gv = callee(value)
        if isinstance(value, relax.Var):
            place[b.var] = place[value]
        elif isinstance(value, relax.TupleGetItem):
            place[b.var] = fields[value.tuple_value][value.index]
        elif isinstance(value, relax.Tuple):
            continue
        elif op_name(value) == "relax.reshape":
            place[b.var] = place[value.args[0]]
        elif gv is not None:
            args = [place[a] for a in value.args[1].fields]
            outs = _results(value, b.var, args, new)
            inplace = op_name(value) == "relax.call_tir_inplace"
            passed = args + [o for i, o in enumerate(outs) if not inplace or _fresh_index(value, i)]
            written, updated = ([o for o in outs if ("." in o) is fresh] for fresh in (True, False))
            calls.append(
                KernelCall(gv.name_hint, tuple(passed), _note(b.var), tuple(written), tuple(updated))
            )
            if isinstance(b.var.ty, tvm.ir.TupleType):
                fields[b.var] = outs
            else:
                place[b.var] = outs[0]
        else:
            raise UnsupportedOperatorError(
                "plan memory",
                f"{op_name(value)} at {b.var.name}",
                "an operator that was not lowered",
                "kernels and views",
                "report it",
            )
    _check_updates(name, calls, {n for n, s in storages.items() if s.role == "param"})
    return Entry(name, tuple(calls), tuple(inputs), _result(func, place))


def _check_updates(entry: str, calls: list[KernelCall], params: set[str]) -> None:
    """What a step computes, it computes from the parameters it began with."""
    updated: set[str] = set()
    for call in calls:
        stale = updated & set(call.args)
        if stale:
            found, hint = f"{call.note} reads it after its update", "report this network"
            raise KernelError(
                "plan memory", f"{entry}, {sorted(stale)[0]}", found, "reads before the update", hint
            )
        updated |= params & set(call.updates)


def _vars(expr: relax.Expr) -> list[relax.Var]:
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Tuple):
        return [v for f in expr.fields for v in _vars(f)]
    if isinstance(expr, relax.TupleGetItem):
        return _vars(expr.tuple_value)
    if isinstance(expr, relax.Call):
        return [v for a in expr.args for v in _vars(a)]
    return []


def _inplace_indices(call: relax.Call) -> list[int]:
    return [int(i) for i in call.attrs.inplace_indices]


def _fresh_index(call: relax.Call, result: int) -> bool:
    return _inplace_indices(call)[result] < 0


def _results(call: relax.Call, var: relax.Var, args: list[str], new: Callable[..., str]) -> list[str]:
    types = list(var.ty.fields) if isinstance(var.ty, tvm.ir.TupleType) else [var.ty]
    if op_name(call) == "relax.call_tir_inplace":
        indices = _inplace_indices(call)
        return [
            args[i] if i >= 0 else new(f"{var.name}_{k}", *_static(t))
            for k, (i, t) in enumerate(zip(indices, types, strict=True))
        ]
    return [new(var.name if len(types) == 1 else f"{var.name}_{k}", *_static(t)) for k, t in enumerate(types)]


def _static(ty: relax.TensorType) -> tuple[tuple[int, ...], str]:
    shape, dtype = tuple(int(d) for d in ty.shape), str(ty.dtype)
    if dtype not in ITEM_BYTES:
        raise KernelError(
            "plan memory", "tensor", f"dtype {dtype}", ", ".join(ITEM_BYTES), "convert the network to float32"
        )
    return shape, dtype


def _note(var: relax.Var) -> str:
    types = list(var.ty.fields) if isinstance(var.ty, tvm.ir.TupleType) else [var.ty]
    return f"{var.name} " + " ".join(str(list(_static(t)[0])) for t in types)


def _result(func: relax.Function, place: dict[relax.Var, str]) -> str | None:
    """The storage of the first result: the output of ``predict``, the loss of ``step``; None where only parameters change."""
    defs = {b.var: b.value for b in bindings(func)}
    expr = func.body.body
    while isinstance(expr, relax.Var) and expr in defs and isinstance(defs[expr], (relax.Var, relax.Tuple)):
        expr = defs[expr]
    if isinstance(expr, relax.Tuple):
        expr = expr.fields[0] if len(expr.fields) else expr
    name = place.get(expr)
    return name if name is not None and "." in name else None
