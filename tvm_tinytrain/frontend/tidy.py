"""Parameters as the compiler wants them: computed ones are computed here and now, vectors are vectors, unused ones go.

Graphs of ONNX and Relay compute with parameters: biases that are reshaped to [1, C, 1, 1], batch norms written as
``γ / sqrt(σ² + ε)``. On a device this would be done at every step.
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.frontend.names import NameSupply
from tvm_tinytrain.passes.reverse_mode import NO_GRADIENT
from tvm_tinytrain.passes.rewriting import (
    Rebuilder,
    bindings,
    callee,
    dtype_of,
    op_name,
    operands,
    rebuild,
    shape_of,
)
from tvm_tinytrain.passes.state import FIXED, get_fixed, get_values, with_fixed, with_values

_ELEMENTWISE = ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")


def tidy_parameters(mod: tvm.IRModule) -> tvm.IRModule:
    """Rewrites ``main`` so that parameters are read as they are stored.

    ``add(conv, expand_dims(b))``  becomes  ``add(conv, reshape(b))``, ``multiply(x, rsqrt(add(var, 1e-5)))`` becomes
    ``multiply(x, p)`` with a new parameter; a bias stored as [1, C, 1, 1] is stored as [C]. What is computed from a layer's weight
    stays: its value would not follow the weight.
    """
    mod = _fold(mod)
    mod = _flatten_vectors(mod)
    return _drop_unused(mod)


def fold_weights(mod: tvm.IRModule) -> tvm.IRModule:
    """Evaluates weights and biases of layers that are computed from parameters: of weight or spectral norm, of cosine classifiers.

    What is trained is the effective weight: ``conv(x, v · g / ‖v‖)``  becomes  ``conv(x, w)``. An expression whose parameters are
    read elsewhere too stays as it is: its value would not follow them.
    """
    folded = _fold(mod, weights_only=True)
    return mod if folded is mod else _drop_unused(folded)


def _fold(mod: tvm.IRModule, weights_only: bool = False) -> tvm.IRModule:
    """Evaluates what is computed from parameters and constants alone."""
    func, values = mod["main"], get_values(mod)
    params = set(func.params[int(func.attrs["num_input"]) :])
    known: dict[relax.Var, relax.Expr] = {}
    for b in bindings(func):
        pure = isinstance(b.value, (relax.Call, relax.TupleGetItem)) and callee(b.value) is None
        if pure and all(_is_known(o, params, known) for o in operands(b.value)):
            known[b.var] = b.value
    known = _of_weights(func, known, get_fixed(mod)) if weights_only else _not_of_layers(func, known)
    read = {o for b in bindings(func) if b.var not in known for o in operands(b.value)} | {func.body.body}
    wanted = [v for v in known if v in read and isinstance(v.ty, relax.TensorType)]
    wanted = [v for v in wanted if not _is_view(known[v], params)]
    if not wanted:
        return mod
    arrays = _evaluate(func, known, wanted, values)
    fresh, replaced = _new_parameters(func, known, wanted, read)
    values = {n: a for n, a in values.items() if n not in replaced}
    values |= {fresh[v].name: a for v, a in zip(wanted, arrays, strict=True)}
    if FIXED in mod.attrs:
        unchanging = _named(func, get_fixed(mod))
        fixed = {fresh[v].name for v in wanted if _sources(v, known, NO_GRADIENT).keys() <= unchanging}
        mod = with_fixed(mod, (get_fixed(mod) - replaced) | fixed)

    def body(r: Rebuilder) -> relax.Expr:
        r.env.update(fresh)
        for b in bindings(func):
            if b.var not in known or (b.var not in fresh and b.var in read):
                r.keep(b)
        return r.look(func.body.body)

    kept = [p for p in func.params if p.name not in replaced]
    mod = rebuild(mod, "main", body, params=[*kept, *fresh.values()], attrs=dict(func.attrs))
    return with_values(mod, values)


def _not_of_layers(func: relax.Function, known: dict[relax.Var, relax.Expr]) -> dict[relax.Var, relax.Expr]:
    """Of what is ``known``: that which is not computed from a weight that a layer reads as it is stored and trains."""
    weights = set[relax.Var]()
    for b in bindings(func):
        name = op_name(b.value)
        if b.var not in known and (name.startswith("relax.nn.conv") or name == "relax.matmul"):
            weight = operands(b.value)[1]
            transposed = op_name(known[weight]) == "relax.permute_dims" if weight in known else False
            weights.add(operands(known[weight])[0] if transposed else weight)
    return {v: e for v, e in known.items() if not weights & _sources(v, known).keys()}


def _of_weights(
    func: relax.Function, known: dict[relax.Var, relax.Expr], fixed: Collection[str]
) -> dict[relax.Var, relax.Expr]:
    """Of what is ``known``: that which only one layer's weight, or bias, is computed from, those included."""
    readers: dict[relax.Expr, set[relax.Var]] = {}
    for b in bindings(func):
        for operand in operands(b.value):
            readers.setdefault(operand, set()).add(b.var)
    kept: set[relax.Var] = set()
    for root in _weights(func, known):
        inside, stack = set[relax.Var](), [root]
        while stack:
            var = stack.pop()
            if var in known and var not in inside:
                inside.add(var)
                stack += [o for o in operands(known[var]) if isinstance(o, relax.Var)]
        parameters = _sources(root, known).keys() - _named(func, fixed)
        inner = {v for v in inside if v != root and _sources(v, known).keys() & parameters} | parameters
        if all(readers[v] <= inside for v in inner):
            kept |= inside
    return {v: e for v, e in known.items() if v in kept}


def _weights(func: relax.Function, known: dict[relax.Var, relax.Expr]) -> list[relax.Var]:
    """The computed weights and biases of layers, behind the views by which layers read them."""
    found: dict[relax.Var, None] = {}
    layers: set[relax.Var] = set()
    for b in bindings(func):
        if b.var in known:
            continue
        name, inner = op_name(b.value), operands(b.value)
        operand, view = None, ""
        if name.startswith("relax.nn.conv") or (name == "relax.matmul" and len(shape_of(inner[1])) == 2):
            layers.add(b.var)
            operand, view = inner[1], "relax.permute_dims" if name == "relax.matmul" else ""
        elif name == "relax.add" and any(o in layers for o in inner):
            operand, view = inner[0 if inner[1] in layers else 1], "relax.reshape"
        if operand in known and op_name(known[operand]) == view:
            operand = operands(known[operand])[0]
        if operand in known and (name != "relax.add" or len(shape_of(operand)) == 1):
            found[operand] = None
    return list(found)


def _named(func: relax.Function, names: Collection[str]) -> set[relax.Var]:
    return {p for p in func.params if p.name in names}


def _new_parameters(
    func: relax.Function, known: dict[relax.Var, relax.Expr], wanted: list[relax.Var], read: set[relax.Var]
) -> tuple[dict[relax.Var, relax.Var], set[str]]:
    """A parameter for each folded value, and the names of those that they replace.

    A value of as many elements as the parameter that it is computed from takes its place and its name, if nothing else reads
    that one.
    """
    views = {o for v in known if v in read and v not in wanted for o in operands(known[v])}
    names = NameSupply()
    for p in func.params:
        names.unique(p.name)
    fresh: dict[relax.Var, relax.Var] = {}
    replaced: set[str] = set()
    for var in wanted:
        sources = list(_sources(var, known))
        source = next((s for s in sources if prod(shape_of(s)) == prod(shape_of(var))), None)
        name = None
        if source is not None and source not in read and source not in views and source.name not in replaced:
            name = source.name
        if name is None:
            name = names.unique(f"folded_{sources[0].name if sources else 'constant'}")
        else:
            replaced.add(name)
            if "_parametrizations_" in name:  # of PyTorch: layer_parametrizations_weight_original0
                layer, tensor = name.split("_parametrizations_")
                name = names.unique(f"{layer}_{tensor.rpartition('_original')[0] or tensor}")
        fresh[var] = relax.Var(name, var.ty)
    return fresh, replaced


def _is_known(expr: relax.Expr, params: set[relax.Var], known: dict[relax.Var, relax.Expr]) -> bool:
    if isinstance(expr, relax.Var):
        return expr in params or expr in known
    return not isinstance(expr, relax.Call)


def _is_view(value: relax.Expr, params: set[relax.Var]) -> bool:
    """What passes look through: a stored vector in another shape, a stored matrix transposed."""
    source = operands(value)[0] if operands(value) else None
    if source not in params:
        return False
    return (op_name(value), len(shape_of(source))) in (("relax.reshape", 1), ("relax.permute_dims", 2))


def _sources(var: relax.Var, known: dict[relax.Var, relax.Expr], barrier: str = "") -> dict[relax.Var, None]:
    """The parameters that ``var`` is computed from, in order; not those behind an operator ``barrier``."""
    found: dict[relax.Var, None] = {}
    stack: list[relax.Expr] = [var]
    seen: set[relax.Expr] = set()
    while stack:
        top = stack.pop()
        if top in seen:
            continue
        if isinstance(top, relax.Var):
            seen.add(top)
        if top in known:
            stack += operands(known[top])[::-1] if op_name(known[top]) != barrier else []
        elif isinstance(top, relax.Var):
            found[top] = None
    return found


def _evaluate(
    func: relax.Function,
    known: dict[relax.Var, relax.Expr],
    wanted: list[relax.Var],
    values: dict[str, np.ndarray],
) -> list[np.ndarray]:
    params = [p for p in func.params if p.name in values]
    bb = relax.BlockBuilder()
    with bb.function("main", params):
        with bb.dataflow():
            for var, value in known.items():
                bb.emit_normalized(relax.VarBinding(var, value))
            result = bb.emit_output(relax.Tuple(wanted))
        bb.emit_func_output(result)
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})  # it runs once
    built = relax.build(relax.transform.LegalizeOps()(bb.get()), target)
    vm = relax.VirtualMachine(built, tvm.cpu())
    return [a.numpy() for a in vm["main"](*[tvm.runtime.tensor(values[p.name]) for p in params])]


def _flatten_vectors(mod: tvm.IRModule) -> tvm.IRModule:
    """Stores a parameter of shape [1, C, 1, 1] that is only added or multiplied as [C]."""
    func, values = mod["main"], get_values(mod)
    others: set[relax.Var] = set()
    used: set[relax.Var] = set()
    for b in bindings(func):
        names = {o for o in operands(b.value) if isinstance(o, relax.Var)}
        (used if op_name(b.value) in _ELEMENTWISE else others).update(names)
    vectors: dict[relax.Var, relax.Var] = {}
    for p in func.params[int(func.attrs["num_input"]) :]:
        shape = shape_of(p)
        if p in used and p not in others and len(shape) > 1 and sum(d != 1 for d in shape) <= 1:
            values[p.name] = values[p.name].reshape(-1)
            vectors[p] = relax.Var(p.name, relax.TensorType(values[p.name].shape, dtype_of(p)))
    if not vectors:
        return mod

    def body(r: Rebuilder) -> relax.Expr:
        for p, vector in vectors.items():
            r.env[p] = r.emit(relax.op.reshape(vector, shape_of(p)))
        for b in bindings(func):
            r.keep(b)
        return r.look(func.body.body)

    params = [vectors.get(p, p) for p in func.params]
    return with_values(rebuild(mod, "main", body, params=params, attrs=dict(func.attrs)), values)


def _drop_unused(mod: tvm.IRModule) -> tvm.IRModule:
    func, values = mod["main"], get_values(mod)
    inputs = int(func.attrs["num_input"])
    used = {o for b in bindings(func) for o in operands(b.value) if isinstance(o, relax.Var)} | {
        func.body.body
    }
    params = [p for i, p in enumerate(func.params) if i < inputs or p in used]
    if len(params) == len(func.params):
        return mod

    def body(r: Rebuilder) -> relax.Expr:
        for b in bindings(func):
            r.keep(b)
        return r.look(func.body.body)

    mod = rebuild(mod, "main", body, params=params, attrs=dict(func.attrs))
    return with_values(mod, {p.name: values[p.name] for p in params[inputs:]})
