"""A Relax IRModule as the user gives it: parameters gathered by name, constants lifted to parameters, shapes checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import DTypeError, ImportModelError, ShapeError, UnsupportedOperatorError
from tvm_tinytrain.frontend.names import NameSupply
from tvm_tinytrain.passes.rewriting import bindings, op_name, rebuild, substitute
from tvm_tinytrain.passes.state import get_values, with_values

_TABLES = ("int32", "int64", "bool")
"""Types of parameters that are indices or masks, besides float32."""


def from_relax(
    mod: tvm.IRModule, params: Mapping[str, Any] | None = None, *, prefix: str = ""
) -> tvm.IRModule:
    """A module with ``main(input, parameters…)`` in A-normal form and every parameter's value in ``tt.values``.

    Values come from ``params`` by name, from the attribute ``params`` that TVM's front ends leave, from a module that was imported
    before, and from constants bound in the function body. The function's first parameters, up to the attribute ``num_input``
    (default 1), are inputs. Parameters keep their names without ``prefix``, as C identifiers.
    """
    names = [gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function)]
    if "main" not in names:
        raise ImportModelError(
            "frontend", "module", f"functions {names}", "a function main", "rename the entry function to main"
        )
    mod = relax.transform.Normalize()(relax.transform.ConvertToDataflow()(mod))
    main = mod["main"]
    num_input = int(main.attrs["num_input"]) if main.attrs is not None and "num_input" in main.attrs else 1
    _check_function(main, num_input)
    _check_static(main, num_input)
    if params is not None and not isinstance(params, Mapping):
        allowed = "a mapping from names to arrays"
        raise ImportModelError(
            "frontend", "params", type(params).__name__, allowed, "pass params={name: array}"
        )
    given: dict[str, Any] = {**get_values(mod), **{str(k): v for k, v in (params or {}).items()}}
    if main.attrs is not None and "params" in main.attrs:
        given |= {p.name: v for p, v in zip(main.params[num_input:], main.attrs["params"], strict=True)}
    values, renamed, env, supply = {}, [], {}, NameSupply()
    inputs = [supply.unique(var.name) for var in main.params[:num_input]]
    for index, var in enumerate(main.params):
        name = supply.unique(var.name.removeprefix(prefix)) if index >= num_input else inputs[index]
        new = relax.Var(name, var.ty)
        env[var] = new
        renamed.append(new)
        if index < num_input:
            continue
        if var.name not in given:
            raise ImportModelError(
                "frontend",
                f"parameter {var.name}",
                "no value",
                "a value for every parameter",
                "pass params={name: array}",
            )
        values[name] = _checked(name, var, to_numpy(given[var.name]))
    return _lift_constants(mod, renamed, env, values, num_input, supply)


def _checked(name: str, var: relax.Var, value: np.ndarray) -> np.ndarray:
    """The value of a parameter if it has the parameter's shape and every element is a number."""
    shape = tuple(int(d) for d in var.ty.shape)
    if value.shape != shape:
        raise ShapeError(
            "frontend",
            f"parameter {name}",
            f"shape {value.shape}",
            f"shape {shape}",
            "pass the right array",
        )
    if np.isnan(value).any():
        raise ImportModelError(
            "frontend", f"parameter {name}", "nan", "finite values", "check the checkpoint it comes from"
        )
    return value


def to_numpy(value: Any) -> np.ndarray:
    """The value as a NumPy array, float64 turned into float32."""
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _lift_constants(
    mod: tvm.IRModule,
    params: list[relax.Var],
    env: dict[relax.Var, relax.Expr],
    values: dict[str, np.ndarray],
    num_input: int,
    names: NameSupply,
) -> tvm.IRModule:
    lifted: list[relax.Var] = []

    def lift(expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, tvm.ir.GenericConst) and isinstance(expr.ty, relax.TensorType):
            value = to_numpy(expr.value)
            if value.ndim == 0:
                return relax.const(value, value.dtype.name) if str(expr.ty.dtype) == "float64" else expr
            name = names.unique(f"const_{len(lifted)}")
            dtype = "float32" if str(expr.ty.dtype) == "float64" else expr.ty.dtype
            lifted.append(relax.Var(name, relax.TensorType(value.shape, dtype)))
            values[name] = value
            return lifted[-1]
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([lift(f) for f in expr.fields])
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [lift(a) for a in expr.args], expr.attrs, expr.ty_args)
        return expr

    lifted_values = {b.var: lift(b.value) for b in bindings(mod["main"])}

    def body(r: Any) -> relax.Expr:
        r.env.update(env)
        for b in bindings(r.func):
            value = _in_single_precision(substitute(lifted_values[b.var], r.env))
            trivial = isinstance(value, (relax.Var, relax.Tuple))
            r.env[b.var] = new = value if trivial else r.emit(value, b.var.name)
            dtype = str(new.ty.dtype) if isinstance(new.ty, relax.TensorType) else "float32"
            if "float" in dtype and dtype != "float32":
                hint = "let the network compute in float32, constants and casts included"
                raise DTypeError("frontend", f"{op_name(value)} at {b.var.name}", dtype, "float32", hint)
        result = r.look(r.func.body.body)
        if isinstance(result, relax.Tuple):
            return result.fields[0]
        return r.emit(relax.TupleGetItem(result, 0)) if isinstance(result.ty, tvm.ir.TupleType) else result

    out = rebuild(mod, "main", body, params=[*params, *lifted], attrs={"num_input": num_input})
    return with_values(relax.transform.DeadCodeElimination(["main"])(out), values)


def _in_single_precision(value: relax.Expr) -> relax.Expr:
    """A cast to float64 as one to float32, in which everything is computed; what is float32 already as it is."""
    if op_name(value) != "relax.astype" or str(value.attrs.dtype) not in ("float32", "float64"):
        return value
    source = value.args[0]
    if isinstance(source, relax.Var) and str(source.ty.dtype) == "float32":
        return source
    return relax.op.astype(source, "float32")


def _check_function(main: relax.Function, num_input: int) -> None:
    """Refuses what is no straight line of operators on tensors from the inputs to one result, which a tuple of one may hold."""
    if not 0 < num_input <= len(main.params):
        allowed = f"1 to {len(main.params)}, the parameters of main"
        hint = "inputs come first, then weights"
        raise ImportModelError("frontend", "attribute num_input", num_input, allowed, hint)
    found: list[str] = []

    def look(expr: Any) -> None:
        if isinstance(expr, relax.If):
            found.append("control flow (if)")
        elif isinstance(expr, relax.Function) and not expr.same_as(main):
            found.append("a function inside of it")
        elif isinstance(expr, relax.Call) and isinstance(expr.op, (tvm.ir.GlobalVar, relax.Var)):
            name = expr.op.name_hint if isinstance(expr.op, tvm.ir.GlobalVar) else expr.op.name
            found.append(f"a call of the function {name}")

    relax.analysis.post_order_visit(main, look)
    if found:
        hint = "inline functions, relax.transform.InlinePrivateFunctions(), and choose one branch"
        raise UnsupportedOperatorError("frontend", "function main", found[0], "operators alone", hint)
    result = main.body.body.ty
    fields = list(result.fields) if isinstance(result, tvm.ir.TupleType) else [result]
    if len(fields) != 1 or not isinstance(fields[0], relax.TensorType):
        what = f"{len(fields)} results" if len(fields) != 1 else str(fields[0])
        hint = "return what the loss needs, one tensor"
        raise ImportModelError("frontend", "the network's result", what, "one tensor", hint)


def _check_static(main: relax.Function, num_input: int) -> None:
    for var in [*main.params, *(b.var for b in bindings(main))]:
        fields = var.ty.fields if isinstance(var.ty, tvm.ir.TupleType) else [var.ty]
        for ty in fields:
            if not isinstance(ty, relax.TensorType):
                continue
            if not isinstance(ty.shape, relax.ShapeExpr) or not all(
                isinstance(d, tvm.tirx.IntImm) for d in ty.shape
            ):
                raise ShapeError(
                    "frontend", f"tensor {var.name}", f"shape {ty.shape}", "constants in every dimension",
                    "export the network with fixed input shapes; batches of one sample",
                )  # fmt: skip
    for index, var in enumerate(main.params):
        dtype = str(var.ty.dtype)
        is_input = index < num_input
        if is_input and 0 in (shape := [int(d) for d in var.ty.shape]):
            hint = "export the network with a batch of one sample"
            raise ShapeError("frontend", f"input {var.name}", f"shape {shape}", "no dimension of 0", hint)
        if dtype == "float32" or (not is_input and dtype in _TABLES):
            continue
        whole = is_input and "int" in dtype
        hint = (
            "turn it into float32 before the network" if whole else "convert the network with model.float()"
        )
        thing = f"{'input' if is_input else 'parameter'} {var.name}"
        raise DTypeError("frontend", thing, dtype, "float32", hint)
