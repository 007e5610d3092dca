"""The syntax tree to Relax, node by node in the order of the text; functions are inlined where they are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import DTypeError, ImportModelError, ShapeError, TinyTrainError
from tvm_tinytrain.frontend.names import NameSupply
from tvm_tinytrain.frontend.relax import to_numpy
from tvm_tinytrain.frontend.relay_text import ops_nn, ops_tensor  # noqa: F401  they fill the table of operators
from tvm_tinytrain.frontend.relay_text.params import read_constants
from tvm_tinytrain.frontend.relay_text.registry import Closure, OpCall, Value, convert, describe
from tvm_tinytrain.frontend.relay_text.syntax import (
    Block,
    Call,
    Expr,
    Function,
    Global,
    Item,
    Local,
    Meta,
    Module,
    Number,
    Operator,
    Parameter,
    Position,
    Temporary,
    TensorType,
    TupleExpr,
    syntax_error,
)

MAX_CALLS = 64  # of functions within functions
Scope = dict[str | int, Value]


def lower_module(module: Module, given: Mapping[str, Any]) -> tuple[tvm.IRModule, dict[str, np.ndarray]]:
    """A Relax module with ``main(inputs…, parameters…)`` and the parameters' values by their new names.

    A parameter of ``@main`` without a value in ``given`` is an input of the network. Tensors of the metadata section become
    parameters named ``constant_<index>``.
    """
    if "main" not in module.functions:
        names = ", ".join(f"@{name}" for name in module.functions)
        raise ImportModelError("relay text", "module", names, "a function @main", "rename the entry function")
    return _Lowering(module, given).run()


class _Lowering:
    def __init__(self, module: Module, given: Mapping[str, Any]) -> None:
        self.module = module
        self.given = {str(name): value for name, value in given.items()}
        self.constants = (
            None if module.metadata is None else read_constants(module.metadata, module.metadata_line)
        )
        self.bb = relax.BlockBuilder()
        self.names = NameSupply()
        self.inputs: list[relax.Var] = []
        self.params: list[relax.Var] = []
        self.values: dict[str, np.ndarray] = {}
        self.meta_vars: dict[int, relax.Var] = {}
        self.items: dict[tuple[relax.Var, int], relax.Var] = {}
        self.calls = 0

    def run(self) -> tuple[tvm.IRModule, dict[str, np.ndarray]]:
        main = self.module.functions["main"]
        scope: Scope = {param.name: self.parameter(param) for param in main.params}
        for meta in _metas(list(self.module.functions.values())):
            self.constant(meta)
        try:
            with self.bb.function("main", [*self.inputs, *self.params]):
                with self.bb.dataflow():
                    result = self.bb.emit_output(self.as_expr(self.block(main.body, scope), main.body.at))
                self.bb.emit_func_output(result)
        except TinyTrainError:
            self.bb._end_block()  # TVM would print a warning about it
            raise
        mod = self.bb.get()
        mod["main"] = mod["main"].with_attr("num_input", len(self.inputs))
        return mod, self.values

    # --- parameters

    def parameter(self, param: Parameter) -> relax.Var:
        what = f"{param.at} %{param.name}"
        value = self.given.get(param.name)
        if value is None and param.name[0] == "v" and not param.name[1:2].isalpha():
            value = self.given.get(param.name[1:])  # the printer writes %v0.weight for a parameter 0.weight
        array = None if value is None else to_numpy(value)
        if isinstance(param.type, TensorType):
            shape, dtype = param.type.shape, param.type.dtype
        elif param.type is None and array is not None:
            shape, dtype = array.shape, str(array.dtype)
        else:
            found = "no type" if param.type is None else f"a type of {param.type.text}"
            hint = "infer types before printing: relay.transform.InferType()(mod)"
            raise syntax_error(param.at, f"%{param.name}", found, "%x: Tensor[(…), float32]", hint)
        if dtype != "float32":
            raise DTypeError("relay text", what, dtype, "float32", "convert the network to float32 first")
        if any(extent is None for extent in shape):
            hint = "import the network with fixed shapes and one sample"
            raise ShapeError("relay text", what, "a dimension ?", "constants in every dimension", hint)
        if array is not None and array.shape != shape:
            raise ShapeError(
                "relay text", what, f"a value of shape {array.shape}", shape, "give its own file"
            )
        var = relax.Var(self.names.unique(param.name), relax.TensorType(shape, dtype))
        if array is None:
            self.inputs.append(var)
        else:
            self.params.append(var)
            self.values[var.name] = array.astype(np.float32)
        return var

    def constant(self, meta: Meta) -> relax.Expr:
        """The parameter, or for a scalar the constant, that ``meta[relay.Constant][index]`` stands for."""
        if meta.kind != "relay.Constant":
            hint = "print the module without attributes that are objects"
            raise syntax_error(meta.at, "metadata", f"meta[{meta.kind}]", "meta[relay.Constant]", hint)
        if self.constants is None or meta.index >= len(self.constants):
            found = (
                "no #[metadata]"
                if self.constants is None
                else f"{len(self.constants)} constants in #[metadata]"
            )
            hint = "print the module with mod.astext(show_meta_data=True)"
            raise syntax_error(meta.at, f"meta[relay.Constant][{meta.index}]", found, "its tensor", hint)
        array = self.constants[meta.index]
        if array.ndim == 0:
            return relax.const(array)
        if array.dtype not in (np.float32, np.float64):
            what = f"{meta.at} meta[relay.Constant][{meta.index}]"
            raise DTypeError(
                "relay text", what, array.dtype, "float32", "convert the network to float32 first"
            )
        if meta.index not in self.meta_vars:
            name = self.names.unique(f"constant_{meta.index}")
            self.values[name] = array.astype(np.float32)
            self.meta_vars[meta.index] = relax.Var(name, relax.TensorType(array.shape, "float32"))
            self.params.append(self.meta_vars[meta.index])
        return self.meta_vars[meta.index]

    # --- expressions

    def block(self, block: Block, scope: Scope) -> Value:
        scope = dict(scope)
        for binding in block.bindings:
            target = binding.target
            scope[target.name if isinstance(target, Local) else target.index] = self.expr(
                binding.value, scope
            )
        return self.expr(block.result, scope)

    def expr(self, expr: Expr, scope: Scope) -> Value:
        match expr:
            case Number(value, dtype, _):
                return relax.const(value, dtype)
            case Local(name, at):
                if name not in scope:
                    raise syntax_error(
                        at, "variable", f"%{name}", "a variable of this function", "check the name"
                    )
                return scope[name]
            case Temporary(index, at):
                if index not in scope:
                    raise syntax_error(
                        at, "variable", f"%{index}", "a temporary bound above", "check the number"
                    )
                return scope[index]
            case Meta():
                return self.constant(expr)
            case Global(name, at):
                if name not in self.module.functions:
                    names = ", ".join(f"@{n}" for n in self.module.functions)
                    raise syntax_error(at, "function", f"@{name}", names, "print the whole module")
                return Closure(self.module.functions[name], {})
            case Function():
                return Closure(expr, scope)
            case TupleExpr(fields, _):
                return tuple(self.expr(field, scope) for field in fields)
            case Item(source, index, at):
                return self.item(self.expr(source, scope), index, at)
            case Block():
                return self.block(expr, scope)
            case Call():
                return self.call(expr, scope)
            case Operator(name, at):
                hint = "call it: " + name + "(…)"
                raise syntax_error(at, "expression", f"operator {name} without arguments", "a value", hint)

    def item(self, source: Value, index: int, at: Position) -> Value:
        if isinstance(source, tuple):
            count, fields = len(source), list(source)
        elif isinstance(source, relax.Var) and isinstance(source.ty, tvm.ir.TupleType):
            count, fields = len(source.ty.fields), None
        else:
            raise syntax_error(at, "tuple index", describe(source), "a tuple", "take a field of a tuple only")
        if index >= count:
            raise syntax_error(at, "tuple index", index, f"0 to {count - 1}", "check the index")
        if fields is None:  # printed as %1.0 wherever it is read, and one value nevertheless
            if (source, index) not in self.items:
                self.items[source, index] = self.bb.emit(relax.TupleGetItem(source, index))
            return self.items[source, index]
        value = fields[index]
        if value is None:
            hint = "print the network in inference mode"
            raise syntax_error(
                at, "tuple index", "a result of training mode, such as a mask", "result 0", hint
            )
        return value

    def call(self, call: Call, scope: Scope) -> Value:
        if not isinstance(call.callee, Operator):
            return self.inline(call, scope)
        args = tuple(self.expr(arg, scope) for arg in call.args)
        attributes = {attribute.name: attribute for attribute in call.attributes}
        inputs = tuple(self.inputs)
        op_call = OpCall(call.callee.name, call.at, args, attributes, inputs)
        try:
            return self.bind(convert(op_call))
        except TinyTrainError:
            raise
        except Exception as error:  # TVM's type inference raises what it likes
            shapes = ", ".join(describe(arg) for arg in args)
            raise syntax_error(
                call.at,
                call.callee.name,
                f"({shapes}): {_reason(error)}",
                "operands that fit",
                "check their shapes",
            ) from error

    def bind(self, value: Value) -> Value:
        if isinstance(value, tuple):
            return tuple(self.bind(field) for field in value)
        if isinstance(value, relax.Call):
            return self.bb.emit(value)
        return value

    def inline(self, call: Call, scope: Scope) -> Value:
        callee = self.expr(call.callee, scope)
        if not isinstance(callee, Closure):
            raise syntax_error(
                call.at, "call", describe(callee), "an operator or a function", "check the call"
            )
        params = callee.function.params
        if len(params) != len(call.args):
            found = f"{len(call.args)} arguments"
            raise syntax_error(call.at, "call", found, f"{len(params)}", "check the call")
        if self.calls >= MAX_CALLS:
            hint = "unroll recursion before printing"
            raise syntax_error(call.at, "call", f"functions nested above {MAX_CALLS}", "less", hint)
        inner = {**callee.scope} | {
            p.name: self.expr(a, scope) for p, a in zip(params, call.args, strict=True)
        }
        self.calls += 1
        value = self.block(callee.function.body, inner)
        self.calls -= 1
        return value

    def as_expr(self, value: Value, at: Position) -> relax.Expr:
        if isinstance(value, tuple):
            return relax.Tuple([self.as_expr(field, at) for field in value])
        if value is None or isinstance(value, Closure):
            raise syntax_error(at, "result of @main", describe(value), "a tensor", "return a tensor")
        return value


def _reason(error: Exception) -> str:
    """The last line of TVM's message, without its dumps of operator objects."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    reason = re.sub(r'(In )?ir\.Op\(.*?name="([^"]+)".*?support_level=\d+\)', r"\2", reason)
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", reason).rstrip(".")


def _metas(functions: Sequence[Expr]) -> list[Meta]:
    """All references to constants: they become parameters, which must be known before the body is built."""
    found: dict[tuple[str, int], Meta] = {}
    stack = list(functions)
    while stack:
        top = stack.pop()
        if isinstance(top, Meta):
            found.setdefault((top.kind, top.index), top)
        elif isinstance(top, Call):  # attributes are checked where they are read
            stack += [top.callee, *top.args]
        elif isinstance(top, Block):
            stack += [top.result, *(binding.value for binding in top.bindings)]
        elif isinstance(top, Function):
            stack.append(top.body)
        elif isinstance(top, TupleExpr):
            stack += top.fields
        elif isinstance(top, Item):
            stack.append(top.source)
    return [found[key] for key in sorted(found)]
