"""FoldBatchNorm: inference-mode batch norm becomes part of the layer before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.passes.kernels.frozen_norm import frozen_norm
from tvm_tinytrain.passes.layer_chains import adds_per_channel
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, op_name, rebuild, shape_of, use_counts
from tvm_tinytrain.passes.state import free_name, get_fixed, get_values, with_fixed, with_values


@dataclass(frozen=True)
class _Layer:
    """The layer that a batch norm's input comes from, with what its channels' scale multiplies."""

    weight: relax.Var
    bias: relax.Var | None
    kind: str
    groups: int = 1
    output: relax.Var | None = None

    def scaled(self, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The weight with output channel o multiplied by scale[o]."""
        if self.kind == "relax.matmul":  # [in, out]
            return weight * scale
        if "transpose" in self.kind:  # [in, out of one group, …]
            per_group = weight.reshape(self.groups, -1, *weight.shape[1:])
            factors = scale.reshape(self.groups, 1, -1, *[1] * (weight.ndim - 2))
            return (per_group * factors).reshape(weight.shape)
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Scales the weight of a layer by γ/σ and its bias likewise, so that the folded weight is what is trained.

    ``batch_norm(conv(x, w) + b, γ, β, μ, σ²)[0]``  becomes  ``conv(x, w·γ/σ) + ((b − μ)γ/σ + β)``; the same for linear layers and
    transposed convolutions. Where no layer can take it, the frozen statistics stay as constants, γ and β as trainable vectors of
    one kernel: ``(x·1/σ − μ/σ)·γ + β``.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites function ``main``."""
        func = mod["main"]
        norms = [b for b in bindings(func) if op_name(b.value) == "relax.nn.batch_norm"]
        if not norms:
            return mod
        values = get_values(mod)
        folded: dict[relax.Var, tuple[relax.Var, relax.Var] | None] = {}
        frozen: dict[relax.Var, tuple[relax.Var, relax.Var]] = {}
        new_params: list[relax.Var] = []

        def parameter(name: str, value: np.ndarray) -> relax.Var:
            unique = free_name(name, {*values, *(p.name for p in func.params)})
            values[unique] = value.astype(np.float32)
            new_params.append(relax.Var(unique, relax.TensorType(value.shape, "float32")))
            return new_params[-1]

        for norm in norms:
            x, gamma, beta, mean, var = norm.value.args
            attrs = norm.value.attrs
            rstd = 1.0 / np.sqrt(values[var.name].astype(np.float64) + float(attrs.epsilon))
            mu = values[mean.name].astype(np.float64)
            g = values[gamma.name].astype(np.float64) if attrs.scale else np.ones_like(mu)
            b = values[beta.name].astype(np.float64) if attrs.center else np.zeros_like(mu)
            layer = _layer_before(func, x, values, int(attrs.axis) % len(shape_of(x)))
            if layer is None:
                stem = gamma.name.removesuffix("_weight")
                frozen[norm.var] = (parameter(f"{stem}_rstd", rstd), parameter(f"{stem}_shift", -mu * rstd))
                continue
            scale = g * rstd
            values[layer.weight.name] = layer.scaled(values[layer.weight.name], scale).astype(np.float32)
            if layer.bias is None:
                name = layer.weight.name.removesuffix("_weight") + "_bias"
                folded[norm.var] = layer.output, parameter(name, b - mu * scale)
            else:
                folded[norm.var] = None
                old = values[layer.bias.name]
                turned = (old.reshape(-1) - mu) * scale + b
                values[layer.bias.name] = turned.astype(np.float32).reshape(old.shape)

        def body(r: Rebuilder) -> relax.Expr:
            calls = {n.var: n.value for n in norms}
            defs = {b.var: b.value for b in bindings(func)}
            for binding in bindings(func):
                source = binding.value.tuple_value if isinstance(binding.value, relax.TupleGetItem) else None
                if binding.var in calls:
                    continue
                if source not in calls:
                    r.keep(binding)
                    continue
                args = [r.look(a) for a in calls[source].args]
                if source in frozen:
                    attrs, channels = calls[source].attrs, shape_of(args[1])
                    for index, given, value in ((1, attrs.scale, 1.0), (2, attrs.center, 0.0)):
                        if not given:
                            args[index] = relax.const(np.full(channels, value, np.float32))
                    r.env[binding.var] = _freeze(r, args, frozen[source], int(attrs.axis), binding.var.name)
                    continue
                r.env[binding.var] = args[0]
                new = folded[source]
                if new is not None:
                    out, bias = new
                    axis = len(shape_of(out)) - 1 if op_name(defs[out]) == "relax.matmul" else 1
                    column = [d if i == axis else 1 for i, d in enumerate(shape_of(out))]
                    y = r.emit(relax.op.add(r.look(out), r.emit(relax.op.reshape(bias, column))))
                    same = shape_of(y) == shape_of(args[0])
                    r.env[binding.var] = y if same else r.emit(relax.op.reshape(y, shape_of(args[0])))
            return r.look(r.func.body.body)

        mod = rebuild(mod, "main", body, params=[*func.params, *new_params], attrs=dict(func.attrs))
        statistics = {p.name for pair in frozen.values() for p in pair}
        mod = with_fixed(mod, get_fixed(mod) | statistics)
        return with_values(relax.transform.DeadCodeElimination(["main"])(mod), values)


def _layer_before(
    func: relax.Function, x: relax.Expr, values: dict[str, np.ndarray], axis: int
) -> _Layer | None:
    """The layer whose output (with or without bias) is ``x`` and is read by nothing else, parameters included.

    Its channels are ``axis`` of ``x``; views behind a linear layer, whose last axis is normalised, are looked through.
    """
    uses = use_counts(func)
    defs = {b.var: b.value for b in bindings(func)}

    def own_param(expr: relax.Expr, *views: str) -> relax.Var | None:
        """The parameter behind ``expr``, or behind ``views`` of it, if this is its only use."""
        while op_name(defs.get(expr)) in views and uses[expr] == 1:
            expr = defs[expr].args[0]
        is_param = isinstance(expr, relax.Var) and expr not in defs and expr.name in values
        return expr if is_param and uses[expr] == 1 else None

    last = axis == len(shape_of(x)) - 1

    def behind_view(expr: relax.Expr) -> relax.Expr:
        """What a view of rows shows, if nothing else reads the view; any other expression is itself."""
        if not last or op_name(defs.get(expr)) != "relax.reshape" or uses[expr] != 1:
            return expr
        inner = defs[expr].args[0]
        return inner if shape_of(inner)[-1:] == shape_of(expr)[-1:] else expr

    x = behind_view(x)
    axis = len(shape_of(x)) - 1 if last else axis
    call, bias = defs.get(x), None
    if call is None or uses[x] != 1:
        return None
    if op_name(call) == "relax.add":
        views = ("relax.reshape", "relax.permute_dims")  # of a vector, as which it is added
        swapped = call.args[0] not in defs or own_param(call.args[0], *views) is not None
        before, addend = call.args[::-1] if swapped else call.args
        bias = own_param(addend, *views)
        if bias is None or not adds_per_channel(shape_of(addend), shape_of(x), axis):
            return None
        if shape_of(before) != shape_of(x):
            return None
        before = behind_view(before)
        axis = len(shape_of(before)) - 1 if last else axis
        call = defs.get(before)
        if call is None or uses[before] != 1:
            return None
    kind = op_name(call)
    if kind == "relax.matmul":
        weight = own_param(call.args[1], "relax.permute_dims")
        if weight is None or not last or len(shape_of(weight)) != 2:
            return None
        direct = weight == call.args[1]
        return _Layer(weight, bias, kind if direct else "linear", output=x)
    if axis != 1 or kind not in {f"relax.nn.conv{n}d{t}" for n in (1, 2) for t in ("", "_transpose")}:
        return None
    weight = own_param(call.args[1])
    return None if weight is None else _Layer(weight, bias, kind, int(call.attrs.groups), x)


def _freeze(
    r: Rebuilder, args: list[relax.Expr], stats: tuple[relax.Var, relax.Var], axis: int, hint: str
) -> relax.Expr:
    """One kernel over [channels, the rest]: the channels are brought to the front where axes longer than one stand before them."""
    x, gamma, beta = args[:3]
    shape, axis = shape_of(x), axis % len(shape_of(x))
    before, channels, behind = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
    flat = (channels, before * behind)
    view = x
    if before > 1:
        view = r.emit(relax.op.reshape(x, (before, channels, behind)))
        view = r.emit(relax.op.permute_dims(view, [1, 0, 2]))
    y = r.kernel(frozen_norm(*flat), [r.emit(relax.op.reshape(view, flat)), *stats, gamma, beta], flat, hint)
    if before > 1:
        y = r.emit(relax.op.reshape(y, (channels, before, behind)))
        y = r.emit(relax.op.permute_dims(y, [1, 0, 2]))
    return r.emit(relax.op.reshape(y, shape))
