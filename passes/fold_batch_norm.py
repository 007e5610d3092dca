"""FoldBatchNorm: inference-mode batch norm becomes part of the convolution before it."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, op_name, rebuild, shape_of, use_counts
from tvm_tinytrain.passes.state import get_values, with_values


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Scales the weight of a convolution by γ/σ and gives it the bias β − μγ/σ, so that the folded weight is what is trained.

    ``conv(x, w) → batch_norm(γ, β, μ, σ²)[0]``  becomes  ``conv(x, w·γ/σ) + (β − μγ/σ)``; a bias b in between becomes β + (b − μ)γ/σ.
    Where no convolution can take it, the frozen statistics stay as constants and γ and β as trainable vectors:
    ``(x·1/σ − μ/σ)·γ + β``.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites function ``main``."""
        func = mod["main"]
        norms = [b for b in bindings(func) if op_name(b.value) == "relax.nn.batch_norm"]
        if not norms:
            return mod
        values = get_values(mod)
        uses = use_counts(func)
        defs = {b.var: b.value for b in bindings(func)}
        replaced: dict[relax.Var, tuple[str, relax.Var, relax.Var]] = {}
        new_params: list[relax.Var] = []

        def parameter(name: str, value: np.ndarray) -> relax.Var:
            unique, count = name, 1
            while unique in values:
                unique, count = f"{name}_{count}", count + 1
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
            weight, own_bias = _convolution(x, defs, uses, set(values))
            if weight is not None:
                scale = (g * rstd).reshape(-1, *[1] * (len(shape_of(weight)) - 1))
                values[weight.name] = (values[weight.name] * scale).astype(np.float32)
                if own_bias is not None:
                    values[own_bias.name] = (b + (values[own_bias.name] - mu) * g * rstd).astype(np.float32)
                    replaced[norm.var] = ("taken in", own_bias, own_bias)
                    continue
                bias = parameter(weight.name.removesuffix("_weight") + "_bias", b - mu * g * rstd)
                replaced[norm.var] = ("folded", bias, bias)
            else:
                stem = gamma.name.removesuffix("_weight")
                replaced[norm.var] = (
                    "affine",
                    parameter(f"{stem}_rstd", rstd),
                    parameter(f"{stem}_shift", -mu * rstd),
                )

        def body(r: Rebuilder) -> relax.Expr:
            for binding in bindings(func):
                source = binding.value.tuple_value if isinstance(binding.value, relax.TupleGetItem) else None
                if binding.var in replaced:
                    continue
                if source not in replaced:
                    r.keep(binding)
                    continue
                call = next(n.value for n in norms if n.var == source)
                x = r.look(call.args[0])
                shape = [1, -1, *[1] * (len(shape_of(x)) - 2)]
                column = [shape_of(call.args[1])[0] if d == -1 else d for d in shape]

                def across(v: relax.Expr, column: list[int] = column) -> relax.Expr:
                    return r.emit(relax.op.reshape(v, column))

                kind, first, second = replaced[source]
                if kind == "taken in":
                    r.env[binding.var] = x
                    continue
                if kind == "folded":
                    r.env[binding.var] = r.emit(relax.op.add(x, across(first)))
                    continue
                normed = r.emit(relax.op.add(r.emit(relax.op.multiply(x, across(first))), across(second)))
                scaled = r.emit(relax.op.multiply(normed, across(r.look(call.args[1]))))
                r.env[binding.var] = r.emit(relax.op.add(scaled, across(r.look(call.args[2]))))
            return r.look(r.func.body.body)

        mod = rebuild(mod, "main", body, params=[*func.params, *new_params], attrs=dict(func.attrs))
        return with_values(mod, values)


def _convolution(
    x: relax.Expr, defs: dict[relax.Var, relax.Expr], uses: dict[relax.Var, int], params: set[str]
) -> tuple[relax.Var | None, relax.Var | None]:
    """Weight and bias of the convolution whose result is ``x`` and nothing else's; (None, None) where it is something else."""
    bias, value = None, defs.get(x)
    if uses.get(x) != 1 or value is None:
        return None, None
    if op_name(value) == "relax.add":
        conv, column = value.args
        reshape = defs.get(column)
        if reshape is None or op_name(reshape) != "relax.reshape" or uses.get(conv) != 1 or uses[column] != 1:
            return None, None
        bias, value = reshape.args[0], defs.get(conv)
        per_channel = shape_of(bias) == (shape_of(x)[1],) and shape_of(column)[1:2] == shape_of(bias)
        if bias in defs or bias.name not in params or uses[bias] != 1 or not per_channel:
            return None, None
    if value is None or op_name(value) not in ("relax.nn.conv2d", "relax.nn.conv1d"):
        return None, None
    weight = value.args[1]
    return (
        (weight, bias) if weight.name in params and weight not in defs and uses[weight] == 1 else (None, None)
    )
