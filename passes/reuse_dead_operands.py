"""ReuseDeadOperands: an elementwise kernel overwrites an operand that nothing reads afterwards."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from tvm_tinytrain.passes.kernels.builder import ROLES_ATTR
from tvm_tinytrain.passes.kernels.planes import copies_planes_first
from tvm_tinytrain.passes.liveness import Liveness, liveness
from tvm_tinytrain.passes.rewriting import (
    Rebuilder,
    bindings,
    callee,
    dtype_of,
    op_name,
    rebuild,
    shape_of,
)


@tvm.transform.module_pass(opt_level=0, name="ReuseDeadOperands")
class ReuseDeadOperands:
    """``z = call_tir(add, (x, y))`` where x is not read again  →  ``z = call_tir_inplace(add', (x, y), [0])``, the bytes of x.

    Runs on scheduled kernels, and asks the kernel itself: it has one block, which stores to the result once and reads the operand at
    the index of that store only, so that every element is read before it is overwritten. Depthwise convolutions of stride one, and
    their input gradients, do so plane by plane where their schedule copies planes (`kernels.planes`).
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites every Relax function."""
        for name in sorted(gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function)):
            mod = _rewrite(mod, name)
        return mod


def _rewrite(mod: tvm.IRModule, name: str) -> tvm.IRModule:
    func = mod[name]
    spans = liveness(func)
    chosen: dict[relax.Var, int] = {}
    for index, b in enumerate(bindings(func)):
        position = _reusable(mod, b, index, spans)
        if position is not None:
            chosen[b.var] = position
    if not chosen:
        return mod
    made: dict[tuple[Any, int], tirx.PrimFunc] = {}

    def body(r: Rebuilder) -> relax.Expr:
        for b in bindings(func):
            if b.var not in chosen:
                r.keep(b)
                continue
            position, gv = chosen[b.var], b.value.args[0]
            key = (gv, position)
            if key not in made:
                made[key] = overwrite_operand(mod[gv], position)
            args = [r.look(a) for a in b.value.args[1].fields]
            new = r.bb.add_func(made[key].without_attr("global_symbol"), gv.name_hint)
            out = relax.TensorType(shape_of(b.var), dtype_of(b.var))
            call = relax.op.call_tir_inplace(new, relax.Tuple(args), [position], out)
            r.env[b.var] = r.emit(call, b.var.name)
        return r.look(func.body.body)

    return rebuild(mod, name, body, attrs=dict(func.attrs))


def _reusable(
    mod: tvm.IRModule,
    b: relax.VarBinding,
    index: int,
    spans: Liveness,
) -> int | None:
    """The position of the operand that the kernel call may overwrite, or None."""
    if op_name(b.value) != "relax.call_tir" or not isinstance(b.var.ty, relax.TensorType):
        return None
    kernel = mod[callee(b.value)]
    args = list(b.value.args[1].fields)
    if len(kernel.params) != len(args) + 1:  # a symbolic size
        return None
    owners = [spans.owner(a) for a in args]
    for position, arg in enumerate(args):
        if not isinstance(arg, relax.Var) or (shape_of(arg), dtype_of(arg)) != (
            shape_of(b.var),
            dtype_of(b.var),
        ):
            continue
        if owners.count(owners[position]) > 1 or not spans.dies_at(arg, index):
            continue
        if elementwise_in(kernel, position) or copies_planes_first(kernel, position):
            return position
    return None


def overwrite_operand(kernel: tirx.PrimFunc, position: int) -> tirx.PrimFunc:
    """The kernel without its last parameter, the result: it is written to the operand at ``position``."""
    params = list(kernel.params)
    new = kernel.specialize({params[-1]: params[position]})
    if ROLES_ATTR not in (kernel.attrs or {}):
        return new
    roles = str(kernel.attrs[ROLES_ATTR]).split(",")[:-1]
    roles[position] = "inout"
    return new.with_attr(ROLES_ATTR, ",".join(roles))


def elementwise_in(kernel: tirx.PrimFunc, position: int) -> bool:
    """Whether the kernel has one block, with one store to the result, at whose index it reads the operand and nowhere else."""
    operand, result = kernel.params[position], kernel.params[-1]
    accesses = _Accesses(kernel)
    if len(accesses.blocks) != 2 or len(accesses.stores) != 1:  # the root and one other
        return False
    store = accesses.stores[0]
    if not store.buffer.same_as(result) or any(load.source.same_as(result) for load in accesses.loads):
        return False
    reads = [load for load in accesses.loads if load.source.same_as(operand)]
    return bool(reads) and all(_same(load.indices, store.indices) for load in reads)


class _Accesses:
    """Blocks, stores and loads of a kernel in order of appearance."""

    def __init__(self, kernel: tirx.PrimFunc) -> None:
        self.blocks: list[Any] = []
        self.stores: list[Any] = []
        self.loads: list[Any] = []
        tvm_ffi.structural_walk(
            kernel.body,
            [
                (s_tir.SBlock, self.blocks.append),
                (tirx.BufferStore, self.stores.append),
                (tvm.ir.TensorLoad, self.loads.append),
            ],
        )


def _same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(tvm_ffi.structural_equal(x, y) for x, y in zip(a, b, strict=True))
