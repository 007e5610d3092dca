"""Rebuilding a Relax function binding by binding: the mutator that all graph passes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax, tirx

Env = dict[relax.Var, relax.Expr]


def bindings(func: relax.Function) -> list[relax.VarBinding]:
    """All bindings of a function in order."""
    return [b for block in func.body.blocks for b in block.bindings]


def operands(expr: relax.Expr) -> list[relax.Expr]:
    """The tensor operands of an expression: the arguments of a call (of ``call_tir``: its tuple), fields of a tuple."""
    if isinstance(expr, relax.Call):
        if callee(expr) is not None:
            return list(expr.args[1].fields)
        return [f for a in expr.args for f in (a.fields if isinstance(a, relax.Tuple) else [a])]
    if isinstance(expr, relax.Tuple):
        return list(expr.fields)
    if isinstance(expr, relax.TupleGetItem):
        return [expr.tuple_value]
    return [expr] if isinstance(expr, relax.Var) else []


def callee(expr: relax.Expr) -> tvm.ir.GlobalVar | None:
    """The kernel that a ``call_tir`` or ``call_tir_inplace`` calls, or None for any other expression."""
    if op_name(expr) in ("relax.call_tir", "relax.call_tir_inplace"):
        return expr.args[0]
    return None


def op_name(expr: relax.Expr) -> str:
    """``relax.nn.conv2d`` and the like; the node's type where it is no operator call."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
        return str(expr.op.name)
    return type(expr).__name__


def shape_of(expr: relax.Expr) -> tuple[int, ...]:
    """The static shape of a tensor expression."""
    return tuple(int(d) for d in expr.ty.shape)


def dtype_of(expr: relax.Expr) -> str:
    """The element type of a tensor expression, such as ``float32``."""
    return str(expr.ty.dtype)


def slice_range(call: relax.Call) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First index and step along every axis of a ``strided_slice``, as TVM resolves them: negative indices count from the end."""
    shape = shape_of(call.args[0])
    axes, first = ([int(v.value) for v in call.args[i].fields] for i in (1, 2))
    given = [int(v.value) for v in call.args[4].fields] if len(call.args) > 4 else [1] * len(axes)
    begin, steps = [0] * len(shape), [1] * len(shape)
    for axis, start, step in zip(axes, first, given, strict=True):
        size = shape[axis]
        low, high = (0, size) if step > 0 else (-1, size - 1)
        begin[axis] = min(max(start + size if start < 0 else start, low), high)
        steps[axis] = step
    return tuple(begin), tuple(steps)


def substitute(expr: relax.Expr, env: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    """The expression with variables replaced; works on the flat expressions of A-normal form."""
    if isinstance(expr, relax.Var):
        return env.get(expr, expr)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(f, env) for f in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        source = substitute(expr.tuple_value, env)
        return (
            source.fields[expr.index]
            if isinstance(source, relax.Tuple)
            else relax.TupleGetItem(source, expr.index)
        )
    if isinstance(expr, relax.Call):
        return relax.Call(expr.op, [substitute(a, env) for a in expr.args], expr.attrs, expr.ty_args)
    return expr


def use_counts(func: relax.Function) -> dict[relax.Var, int]:
    """How often each variable is read, the function's result included."""
    counts: dict[relax.Var, int] = {}
    for expr in [*(b.value for b in bindings(func)), func.body.body]:
        for operand in operands(expr):
            if isinstance(operand, relax.Var):
                counts[operand] = counts.get(operand, 0) + 1
    return counts


@dataclass
class Rebuilder:
    """Emits a new version of function ``name``: `emit` adds bindings, `finish` gives the new module."""

    mod: tvm.IRModule
    name: str
    env: Env = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bb = relax.BlockBuilder(tvm.IRModule(dict(self.mod.functions.items())))

    @property
    def func(self) -> relax.Function:
        """The function as it was."""
        return self.mod[self.name]

    def look(self, expr: relax.Expr) -> relax.Expr:
        """The new expression for an old one."""
        return substitute(expr, self.env)

    def emit(self, expr: relax.Expr, hint: str = "") -> relax.Var:
        """Binds ``expr`` to a new variable."""
        return self.bb.emit(expr, hint) if hint else self.bb.emit(expr)

    def keep(self, binding: relax.VarBinding) -> None:
        """Copies a binding with its operands replaced."""
        value = self.look(binding.value)
        trivial = isinstance(value, (relax.Var, relax.Tuple)) and not isinstance(
            binding.var.ty, relax.ShapeType
        )
        self.env[binding.var] = value if trivial else self.emit(value, binding.var.name)

    def kernel(
        self,
        func: tirx.PrimFunc,
        args: Sequence[relax.Expr],
        shapes: Any,
        hint: str = "",
        dtype: str = "float32",
    ) -> relax.Var:
        """Adds a kernel to the module and binds a call of it; ``shapes`` is the shape of its output, or a list of shapes."""
        gv = self.bb.add_func(func.without_attr("global_symbol"), str(func.attrs["tt.kernel"]))
        return self.emit(relax.call_tir(gv, relax.Tuple(list(args)), tensor_types(shapes, dtype)), hint)

    def kernel_inplace(
        self, func: tirx.PrimFunc, args: Sequence[relax.Expr], inplace: list[int], hint: str = ""
    ) -> relax.Var:
        """Like `kernel`, for one whose outputs are its own arguments ``inplace``."""
        gv = self.bb.add_func(func.without_attr("global_symbol"), str(func.attrs["tt.kernel"]))
        types = [relax.TensorType(shape_of(args[i]), dtype_of(args[i])) for i in inplace]
        out = types[0] if len(types) == 1 else types
        return self.emit(relax.op.call_tir_inplace(gv, relax.Tuple(list(args)), inplace, out), hint)


def tensor_types(shapes: Any, dtype: str) -> Any:
    """TensorType of one shape, or a list of them for a list of shapes."""
    if isinstance(shapes, list):
        return [relax.TensorType(s, dtype) for s in shapes]
    return relax.TensorType(shapes, dtype)


def rebuild(
    mod: tvm.IRModule,
    name: str,
    body: Callable[[Rebuilder], relax.Expr],
    *,
    params: Sequence[relax.Var] | None = None,
    source: str | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> tvm.IRModule:
    """Replaces (or adds) function ``name`` by one built by ``body``, which returns the result expression.

    ``source`` is the function whose bindings are read (default: ``name`` itself), ``params`` the new parameters (default:
    those of the source). Kernels that ``body`` adds come along.
    """
    source = source or name
    old = mod[source]
    builder = Rebuilder(mod, source)
    new_params = list(old.params if params is None else params)
    func_attrs = dict(attrs or {})
    try:
        with builder.bb.function("tt_new", new_params, attrs=func_attrs, pure=True):
            with builder.bb.dataflow():
                result = body(builder)
                out = builder.bb.emit_output(result)
            builder.bb.emit_func_output(out)
    except Exception:
        builder.bb._end_block()  # TVM would print a warning about it
        raise
    built = builder.bb.get()
    functions = {gv.name_hint: f for gv, f in built.functions.items()}
    # FuseOps wants every variable in one function only
    fresh = relax.utils.copy_with_new_vars(functions.pop("tt_new"))
    functions[name] = fresh.with_attr("global_symbol", name)
    # GlobalVars are kept: call sites refer to them by identity
    by_name = {gv.name_hint: gv for gv in built.functions}
    table = {by_name.get(k, tvm.ir.GlobalVar(k)): f for k, f in functions.items()}
    return tvm.IRModule(table, attrs=mod.attrs)
