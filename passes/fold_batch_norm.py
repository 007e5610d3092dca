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

    ``conv(x, w) → batch_norm(γ, β, μ, σ²)[0]``  becomes  ``conv(x, w·γ/σ) + (β − μγ/σ)``.
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
            conv = defs.get(x)
            weight = (
                conv.args[1]
                if conv is not None and op_name(conv) in ("relax.nn.conv2d", "relax.nn.conv1d")
                else None
            )
            if weight is not None and weight.name in values and uses[x] == 1 and uses[weight] == 1:
                scale = (g * rstd).reshape(-1, *[1] * (len(shape_of(weight)) - 1))
                values[weight.name] = (values[weight.name] * scale).astype(np.float32)
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
                if kind == "folded":
                    r.env[binding.var] = r.emit(relax.op.add(x, across(first)))
                    continue
                normed = r.emit(relax.op.add(r.emit(relax.op.multiply(x, across(first))), across(second)))
                scaled = r.emit(relax.op.multiply(normed, across(r.look(call.args[1]))))
                r.env[binding.var] = r.emit(relax.op.add(scaled, across(r.look(call.args[2]))))
            return r.look(r.func.body.body)

        mod = rebuild(mod, "main", body, params=[*func.params, *new_params], attrs=dict(func.attrs))
        return with_values(mod, values)
