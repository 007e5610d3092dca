"""Which variables of a Relax function share bytes, and when those bytes are read for the last time.

An analysis: it changes nothing. Views (``reshape``), other names and in-place results share the bytes of what they come from, as
`program.analyse_program` gives them one storage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import relax

from tvm_tinytrain.passes.rewriting import bindings, dtype_of, op_name, operands, shape_of

_BITS = {
    "float32": 32,
    "int32": 32,
    "uint8": 8,
    "int8": 8,
    "bool": 8,
    "float16": 16,
    "int64": 64,
    "uint32": 32,
}


@dataclass(frozen=True)
class Liveness:
    """``root`` names for each variable the one that owns its bytes; a variable without an entry owns its own.

    ``born`` and ``last``: by owner, the index of the binding that writes the bytes first (−1 for parameters) and of the last one that
    reads or changes them; the number of bindings where the function's result holds them.
    """

    root: dict[relax.Var, relax.Var]
    born: dict[relax.Var, int]
    last: dict[relax.Var, int]
    reads: dict[relax.Var, tuple[int, ...]]

    def owner(self, var: relax.Var) -> relax.Var:
        """The variable whose bytes ``var`` is."""
        return self.root.get(var, var)

    def dies_at(self, var: relax.Var, index: int) -> bool:
        """Whether binding ``index`` is the last to read the bytes of ``var``, an intermediate value of this function."""
        owner = self.owner(var)
        return self.born.get(owner, -1) >= 0 and self.last.get(owner, -1) == index


def liveness(func: relax.Function) -> Liveness:
    """Owners and life spans of the bytes of ``func``'s variables; fields of tuples are followed."""
    root: dict[relax.Var, relax.Var] = {}
    fields: dict[relax.Var, list[relax.Var | None]] = {}
    born = dict.fromkeys(func.params, -1)
    last: dict[relax.Var, int] = {}
    reads: dict[relax.Var, list[int]] = {}

    def owners(expr: relax.Expr) -> list[relax.Var]:
        if not isinstance(expr, relax.Var):
            return [o for a in operands(expr) if a is not expr for o in owners(a)]
        if expr in fields:
            return [f for f in fields[expr] if f is not None]
        return [root.get(expr, expr)]

    everything = bindings(func)
    for index, b in enumerate(everything):
        value = b.value
        if not isinstance(value, (relax.Var, relax.Tuple, relax.TupleGetItem)) and not is_view(value):
            for owner in owners(value):
                last[owner] = index
                reads.setdefault(owner, []).append(index)
        if isinstance(value, relax.Var) and value in fields:
            fields[b.var] = fields[value]
        elif isinstance(value, relax.Var):
            root[b.var] = root.get(value, value)
        elif isinstance(value, relax.Tuple):
            fields[b.var] = [root.get(f, f) if isinstance(f, relax.Var) else None for f in value.fields]
        elif isinstance(value, relax.TupleGetItem):
            source = fields.get(value.tuple_value, [])
            owner_ = source[value.index] if value.index < len(source) else None
            if owner_ is not None:
                root[b.var] = owner_
            else:
                born[b.var] = index
        elif is_view(value):
            source_var = value.args[0]
            root[b.var] = root.get(source_var, source_var)
        elif op_name(value) == "relax.call_tir_inplace":
            args = list(value.args[1].fields)
            changed = [root.get(args[i], args[i]) if i >= 0 else None for i in inplace_indices(value)]
            if isinstance(b.var.ty, tvm.ir.TupleType):
                fields[b.var] = changed
            elif changed[0] is not None:
                root[b.var] = changed[0]
            if any(c is None for c in changed):
                born[b.var] = index
        else:
            born[b.var] = index
    for owner in owners(func.body.body):
        last[owner] = len(everything)
    for owner, index in born.items():
        last.setdefault(owner, index)
    return Liveness(root, born, last, {v: tuple(i) for v, i in reads.items()})


def is_view(expr: relax.Expr) -> bool:
    """Whether an expression is another shape of the same bytes."""
    return op_name(expr) in ("relax.reshape", "relax.flatten", "relax.expand_dims", "relax.squeeze")


def inplace_indices(call: relax.Call) -> list[int]:
    """Per result of a ``call_tir_inplace`` the argument that it overwrites, −1 for a new tensor."""
    return [int(i) for i in call.attrs.inplace_indices]


def bytes_of(var: relax.Var) -> int:
    """Bytes of a tensor, or of all tensors of a tuple."""
    if isinstance(var.ty, tvm.ir.TupleType):
        return sum(math.prod(int(d) for d in t.shape) * _BITS[str(t.dtype)] // 8 for t in var.ty.fields)
    if not isinstance(var.ty, relax.TensorType):
        return 0
    return math.prod(shape_of(var)) * _BITS[dtype_of(var)] // 8


def live_bytes(func: relax.Function) -> list[int]:
    """For each binding the bytes of all intermediate values that exist while it runs, its result included."""
    spans = liveness(func)
    change = [0] * (len(bindings(func)) + 2)
    for owner, start in spans.born.items():
        if start >= 0:
            change[start] += bytes_of(owner)
            change[min(spans.last[owner], len(change) - 2) + 1] -= bytes_of(owner)
    total, out = 0, []
    for delta in change[: len(bindings(func))]:
        total += delta
        out.append(total)
    return out
