"""SplitWeights: of a layer that is trained in part, only the trained rows live in RAM."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.passes.derive_backward import GRADIENTS
from tvm_tinytrain.passes.kernels import rows as row_kernels
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, rebuild
from tvm_tinytrain.passes.state import (
    Layer,
    get_layers,
    get_roles,
    get_values,
    new_tensor,
    with_roles,
    with_values,
)

ROWS_SUFFIX = "_rows"


@dataclass(frozen=True)
class _Split:
    """One layer's new parameters: its trained rows, their biases (``bias`` says which), and its channel list."""

    layer: Layer
    weight: relax.Var
    bias: relax.Var | None
    channels: relax.Var


@tvm.transform.module_pass(opt_level=0, name="SplitWeights")
class SplitWeights:
    """``y = conv(x, w)``  →  ``y = conv(x, w); y[channels] = conv(x, w_rows)`` with w in flash and w_rows trained; likewise dx.

    Runs between PruneBackward and FuseUpdate, on every layer whose plan names output channels only. Layers trained whole keep
    their weight as the trained parameter; so do layers trained by input channel, and convolutions that are not depthwise and have
    groups, or stride and dilation together.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``predict`` and ``step``."""
        described: list[dict[str, Any]] = json.loads(str(mod["step"].attrs[GRADIENTS]))
        trained = {d["param"]: d for d in described}
        values, roles = get_values(mod), get_roles(mod)
        by_name = {p.name: p for p in mod["step"].params}
        splits: dict[str, _Split] = {}
        for layer in get_layers(mod):
            entry = trained.get(layer.weight)
            if (
                entry is None
                or not entry["channels"]
                or entry["inputs"]
                or not has_row_kernels(mod, layer.weight)
            ):
                continue
            channels = values[entry["channels"]]
            weight = _new(values, roles, layer.weight, values[layer.weight][channels])
            bias = None
            own = trained.get(layer.bias or "", {})
            # a bias that is trained whole, with another layer that adds it, stays as it is
            if layer.bias is not None and own.get("channels") == entry["channels"]:
                bias = _new(values, roles, layer.bias, values[layer.bias][channels])
            splits[layer.weight] = _Split(layer, weight, bias, by_name[entry["channels"]])
        if not splits:
            return mod
        split_off = {v.name for s in splits.values() for v in (s.weight, s.bias) if v is not None}
        for entry in described:
            if entry["param"] + ROWS_SUFFIX in split_off:
                entry |= {"param": entry["param"] + ROWS_SUFFIX, "rows": True}
        for name in ("predict", "step"):
            mod = self._rewrite(mod, name, splits, described)
        return with_roles(with_values(mod, values), roles)

    def _rewrite(
        self, mod: tvm.IRModule, name: str, splits: dict[str, _Split], described: list[dict[str, Any]]
    ) -> tvm.IRModule:
        func = mod[name]
        have = {p.name: p for p in func.params}
        extra = {}
        for split in splits.values():
            for var in (split.weight, split.bias, split.channels):
                if var is not None and var.name not in have:
                    extra[var.name] = relax.Var(var.name, var.ty)
        params = {**have, **extra}

        def body(r: Rebuilder) -> relax.Expr:
            for b in bindings(func):
                r.keep(b)
                gv = callee(b.value)
                if gv is None or kernel_kind(mod[gv]) not in _ROW_KERNELS:
                    continue
                weight = b.value.args[1].fields[1]
                split = splits.get(weight.name) if isinstance(weight, relax.Var) else None
                if split is not None:
                    r.env[b.var] = _by_rows(r, mod[gv], b, split, params)
            return r.look(func.body.body)

        attrs: dict[str, Any] = {"num_input": int(func.attrs["num_input"])}
        if name == "step":
            attrs[GRADIENTS] = json.dumps(described)
        return rebuild(mod, name, body, params=[*func.params, *extra.values()], attrs=attrs)


_ROW_KERNELS = ("conv2d", "linear", "conv2d_input_grad", "linear_input_grad")


def has_row_kernels(mod: tvm.IRModule, weight: str) -> bool:
    """Whether every kernel of ``predict`` and ``step`` that reads the weight has a form over rows."""
    for name in ("predict", "step"):
        for b in bindings(mod[name]):
            gv = callee(b.value)
            if gv is None or not any(
                isinstance(a, relax.Var) and a.name == weight for a in b.value.args[1].fields
            ):
                continue
            kernel = mod[gv]
            if kernel_kind(kernel) not in _ROW_KERNELS:
                return False
            spec = kernel_spec(kernel)
            if not str(kernel_kind(kernel)).startswith("conv2d"):
                continue
            conv = Conv2DSpec.from_dict(spec)
            if not conv.depthwise and (conv.groups != 1 or conv.scatters):
                return False
    return True


def _new(values: dict[str, np.ndarray], roles: dict[str, str], name: str, value: np.ndarray) -> relax.Var:
    return new_tensor(values, roles, name + ROWS_SUFFIX, value, "param")


def _by_rows(
    r: Rebuilder, kernel: Any, b: relax.VarBinding, split: _Split, params: dict[str, relax.Var]
) -> relax.Var:
    spec, kind = kernel_spec(kernel), kernel_kind(kernel)
    count = int(split.channels.ty.shape[0])
    rows, channels = params[split.weight.name], params[split.channels.name]
    operands = [r.look(a) for a in b.value.args[1].fields]
    result = r.env[b.var]
    if kind in ("conv2d_input_grad", "linear_input_grad"):
        if kind == "linear_input_grad":
            correction = row_kernels.linear_input_grad_rows(LinearSpec.from_dict(spec), count)
        else:
            correction = row_kernels.conv2d_input_grad_rows(Conv2DSpec.from_dict(spec), count)
        return r.kernel_inplace(correction, [operands[0], operands[1], rows, channels, result], [4])
    bias = None if not spec["bias"] else ("rows" if split.bias is not None else "full")
    vector = [] if bias is None else [params[split.bias.name] if split.bias is not None else operands[2]]
    clamp = {"bias": bias, "low": spec["low"], "high": spec["high"]}
    if kind == "linear":
        func = row_kernels.linear_rows(LinearSpec.from_dict(spec), count, **clamp)
    else:
        func = row_kernels.conv2d_rows(Conv2DSpec.from_dict(spec), count, **clamp)
    args = [operands[0], rows, *vector, channels, result]
    return r.kernel_inplace(func, args, [len(args) - 1], b.var.name)
