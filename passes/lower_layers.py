"""LowerLayers: convolutions and linear layers become kernels with bias and clamp inside, and get their layer ids."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import ImportModelError, UnsupportedOperatorError
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv2d_transpose import conv2d_transpose
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear
from tvm_tinytrain.passes.reverse_mode import differentiable_variables
from tvm_tinytrain.passes.rewriting import (
    Rebuilder,
    bindings,
    op_name,
    operands,
    rebuild,
    shape_of,
    use_counts,
)
from tvm_tinytrain.passes.state import Layer, get_fixed, get_values, with_layers, with_values

CONVOLUTIONS = (
    "relax.nn.conv2d",
    "relax.nn.conv1d",
    "relax.nn.conv2d_transpose",
    "relax.nn.conv1d_transpose",
)

_OF_WEIGHTS = (*CONVOLUTIONS, "relax.matmul", "relax.permute_dims")


@dataclass
class _Chain:
    """A layer's operator with the bias add and the clamp that follow it: what one kernel computes."""

    root: relax.VarBinding
    weight: relax.Var
    bias: relax.Var | None = None
    low: float | None = None
    high: float | None = None


@tvm.transform.module_pass(opt_level=0, name="LowerLayers")
class LowerLayers:
    """``conv2d → add(bias) → clip`` becomes one ``call_tir`` of the kernel ``conv2d``; likewise ``matmul`` → ``linear``.

    Views in between that keep the channels' axis come behind the kernel: ``matmul → reshape → add(bias)`` is ``linear → reshape``.
    A bias parameter of any shape that adds one value per channel becomes a vector. An intermediate that something else reads ends the
    chain. ``main`` becomes ``predict``; the table of the layers that can be trained is written to ``tt.layers`` in order of execution.
    A weight that is no parameter of the network, and one that has no gradient, stay frozen: they get the same kernels, but no layer id.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``main`` into ``predict``."""
        func = mod["main"]
        values = get_values(mod)
        chains, absorbed = _find_chains(func, set(values))
        by_weight = {
            c.weight: c for c in chains.values()
        }  # a weight that several chains share is turned once
        fresh = {v: _as_kernel_weight(c, v, values) for v, c in by_weight.items()}
        vectors = _as_vectors(chains, values)
        params = [{**fresh, **vectors}.get(p, p) for p in func.params]
        layers: list[Layer] = []
        fixed, differentiable = get_fixed(mod), differentiable_variables(func)

        def body(r: Rebuilder) -> relax.Expr:
            r.env.update(fresh)
            for old, vector in vectors.items():  # for its other readers
                r.env[old] = r.emit(relax.op.reshape(vector, shape_of(old)))
            for binding in bindings(func):
                if binding.var in absorbed:
                    continue
                if binding.var in chains:
                    chain = chains[binding.var]
                    frozen = chain.weight.name in fixed or binding.var not in differentiable
                    r.env[binding.var] = _emit(r, chain, None if frozen else layers, fixed, binding.var)
                else:
                    r.keep(binding)
            return r.look(func.body.body)

        attrs = {"num_input": int(func.attrs["num_input"])}
        mod = rebuild(mod, "predict", body, params=params, source="main", attrs=attrs)
        del mod["main"]
        mod = relax.transform.DeadCodeElimination(["predict"])(mod)
        _check_finite(layers, values)
        return with_layers(with_values(mod, values), tuple(layers))


def _find_chains(func: relax.Function, params: set[str]) -> tuple[dict[relax.Var, _Chain], set[relax.Var]]:
    uses = use_counts(func)
    defs = {b.var: b for b in bindings(func)}
    users: dict[relax.Var, list[relax.VarBinding]] = {}
    for b in bindings(func):
        for operand in operands(b.value):
            if isinstance(operand, relax.Var):
                users.setdefault(operand, []).append(b)
    chains: dict[relax.Var, _Chain] = {}
    absorbed: set[relax.Var] = set()

    def is_param(expr: relax.Expr) -> bool:
        return isinstance(expr, relax.Var) and expr not in defs and expr.name in params

    def as_bias(expr: relax.Expr, out: tuple[int, ...], axis: int) -> relax.Var | None:
        """The parameter behind ``expr`` if adding it adds one value per channel, ``axis`` of the ``out`` shape."""
        param = expr
        while param in defs and op_name(defs[param].value) == "relax.reshape":
            param = defs[param].value.args[0]
        if not is_param(param) or not adds_per_channel(shape_of(expr), out, axis):
            return None
        is_weight = any(op_name(u.value) in _OF_WEIGHTS for u in users[param])  # it keeps its shape
        return param if len(shape_of(param)) == 1 or not is_weight else None

    for b in bindings(func):
        name = op_name(b.value)
        weight = None
        if name in CONVOLUTIONS:
            weight = b.value.args[1]
        elif name == "relax.matmul":
            right = b.value.args[1]
            source = defs[right].value if right in defs else None
            if source is not None and op_name(source) == "relax.permute_dims" and len(shape_of(right)) == 2:
                weight = source.args[0]
            elif is_param(right) and len(shape_of(right)) == 2:
                weight = right
        if weight is None or not is_param(weight):
            continue
        turned = name != "relax.nn.conv2d" and weight == b.value.args[1]
        if turned and any(op_name(u.value) != name or u.value.args[1] != weight for u in users[weight]):
            continue  # the kernel wants it in another form, but something else reads it as it is
        chain, end = _Chain(b, weight), b
        shape = shape_of(b.var)
        axis = 1 if name in CONVOLUTIONS else len(shape) - 1
        views: list[relax.VarBinding] = []  # behind ``end``: part of the chain once something of it follows
        while uses.get((last := [end, *views][-1]).var, 0) == 1 and users.get(last.var):
            after = users[last.var][0]
            kind = op_name(after.value)
            if kind == "relax.reshape":
                kept = _same_axis(shape, axis, shape_of(after.var))
                if kept is None:
                    break
                shape, axis = shape_of(after.var), kept
                views.append(after)
                continue
            if kind == "relax.add" and chain.bias is None:
                other = [a for a in after.value.args if a != last.var]
                bias = as_bias(other[0], shape, axis) if len(other) == 1 else None
                if bias is None or shape_of(after.var) != shape:
                    break
                chain.bias = bias
            elif kind == "relax.nn.relu":
                chain.low = 0.0
            elif kind == "relax.clip":
                chain.low, chain.high = (float(a.value) for a in after.value.args[1:])
            else:
                break
            absorbed.update(v.var for v in (end, *views))
            end, views = after, []
            if chain.low is not None or chain.high is not None:
                break
        chains[end.var] = chain
    return chains, absorbed


def _same_axis(shape: tuple[int, ...], axis: int, new: tuple[int, ...]) -> int | None:
    """Where ``axis`` of a tensor is when it is viewed in the shape ``new``; None where the view divides or joins it."""
    before = math.prod(shape[:axis])
    found = [i for i, d in enumerate(new) if d == shape[axis] and math.prod(new[:i]) == before]
    return found[-1] if found else None


def adds_per_channel(shape: tuple[int, ...], out: tuple[int, ...], axis: int) -> bool:
    """Whether adding a tensor of ``shape`` to one of shape ``out`` adds one value per index of ``axis``."""
    return (1,) * (len(out) - len(shape)) + shape == tuple(d if i == axis else 1 for i, d in enumerate(out))


def _as_vectors(chains: dict[relax.Var, _Chain], values: dict[str, np.ndarray]) -> dict[relax.Var, relax.Var]:
    """Biases of other shapes, such as [out, 1, 1], become the vectors that the kernels want; by the parameter that they were."""
    vectors: dict[relax.Var, relax.Var] = {}
    for chain in chains.values():
        old = chain.bias
        if old is None or len(shape_of(old)) == 1:
            continue
        if old not in vectors:
            values[old.name] = values[old.name].reshape(-1)
            vectors[old] = relax.Var(old.name, relax.TensorType(values[old.name].shape, "float32"))
        chain.bias = vectors[old]
    return vectors


def _as_kernel_weight(chain: _Chain, weight: relax.Var, values: dict[str, np.ndarray]) -> relax.Var:
    """The parameter in the shape that the kernels want: [out, in of one group, (kh, kw)]; 1-D kernels have one row."""
    name, value = weight.name, values[weight.name]
    kind = op_name(chain.root.value)
    if kind == "relax.matmul" and chain.root.value.args[1] == weight:
        values[name] = np.ascontiguousarray(value.T)
    elif kind in CONVOLUTIONS[1:]:
        value = value[:, :, None, :] if value.ndim == 3 else value
        if kind != "relax.nn.conv1d":  # [in, out of one group, …]
            grouped = value.reshape(int(chain.root.value.attrs.groups), -1, *value.shape[1:]).swapaxes(1, 2)
            value = np.ascontiguousarray(grouped.reshape(-1, *grouped.shape[2:]))
        values[name] = value
    else:
        return weight
    return relax.Var(name, relax.TensorType(values[name].shape, "float32"))


def _emit(
    r: Rebuilder, chain: _Chain, layers: list[Layer] | None, fixed: frozenset[str], end: relax.Var
) -> relax.Expr:
    """The chain, whose result is ``end``, as one kernel; it is noted in ``layers`` unless that is None."""
    call = chain.root.value
    x, weight = r.look(call.args[0]), r.look(chain.weight)
    args = [weight] + ([r.look(chain.bias)] if chain.bias is not None else [])
    options: dict[str, Any] = {"bias": chain.bias is not None, "low": chain.low, "high": chain.high}
    out_shape = shape_of(chain.root.var)
    spec: Conv2DSpec | LinearSpec
    flat: tuple[int, ...]
    y_shape: tuple[int, ...]
    if op_name(call) == "relax.matmul":
        features = shape_of(x)[-1]
        spec = LinearSpec(int(np.prod(shape_of(x)[:-1])), features, shape_of(weight)[0])
        flat, y_shape = (spec.rows, features), (spec.rows, spec.out_features)
        kernel, kind = linear(spec, **options), "linear"
    elif op_name(call) in CONVOLUTIONS[2:]:
        spec = _transposed_spec(call, shape_of(x), out_shape, shape_of(weight))
        flat = (1, spec.out_channels, spec.out_height, spec.out_width)
        y_shape = (1, spec.in_channels, spec.height, spec.width)
        kernel, kind = conv2d_transpose(spec, **options), "conv2d_transpose"
    else:
        spec = _conv_spec(call, shape_of(x), shape_of(weight))
        flat = (1, spec.in_channels, spec.height, spec.width)
        y_shape = (1, spec.out_channels, spec.out_height, spec.out_width)
        kernel, kind = conv2d(spec, **options), "conv2d"
    if shape_of(x) != flat:
        x = r.emit(relax.op.reshape(x, flat))
    y = r.kernel(kernel, [x, *args], y_shape, end.name)
    if y_shape != shape_of(end):
        y = r.emit(relax.op.reshape(y, shape_of(end)))
    if layers is None:
        return y
    bias = chain.bias.name if chain.bias is not None and chain.bias.name not in fixed else None
    known = next((i for i, layer in enumerate(layers) if layer.weight == weight.name), None)
    if known is None:
        depthwise = isinstance(spec, Conv2DSpec) and spec.depthwise
        layers.append(Layer(len(layers), kind, weight.name, bias, shape_of(weight), spec.macs, depthwise))
    else:
        again = replace(layers[known], macs=layers[known].macs + spec.macs)
        layers[known] = again if bias is None else _with_bias(again, bias)
    return y


def _check_finite(layers: list[Layer], values: dict[str, np.ndarray]) -> None:
    """Other parameters may be infinite: the mask of an attention, a bias that switches a class off."""
    for layer in layers:
        if not np.isfinite(values[layer.weight]).all():
            hint = "check the checkpoint it comes from"
            raise ImportModelError("lower layers", f"parameter {layer.weight}", "inf", "finite weights", hint)


def _with_bias(layer: Layer, bias: str) -> Layer:
    """The layer whose weight is used once more, with this bias."""
    if layer.bias is None:
        return replace(layer, bias=bias)
    if bias in (layer.bias, *layer.other_biases):
        return layer
    return replace(layer, other_biases=(*layer.other_biases, bias))


def _conv_spec(call: relax.Call, x: tuple[int, ...], weight: Any) -> Conv2DSpec:
    _check_layout(call, x)
    attrs = call.attrs
    pads, strides, dilation = _numbers(attrs)
    if op_name(call) == "relax.nn.conv1d":
        return Conv2DSpec(
            x[1],
            1,
            x[2],
            weight[0],
            (1, weight[3]),
            (1, strides[0]),
            (0, pads[0], 0, pads[1]),
            (1, dilation[0]),
            int(attrs.groups),
        )
    return Conv2DSpec(x[1], x[2], x[3], weight[0], weight[2:], strides, pads, dilation, int(attrs.groups))


def _transposed_spec(call: relax.Call, x: tuple[int, ...], out: tuple[int, ...], weight: Any) -> Conv2DSpec:
    """The convolution whose input gradient the transposed convolution is: it reads the layer's output shape."""
    _check_layout(call, x)
    pads, strides, dilation = _numbers(call.attrs)
    if len(x) == 3:
        out = (*out[:2], 1, out[2])
        pads, strides, dilation = (0, pads[0], 0, pads[1]), (1, *strides), (1, *dilation)
    return Conv2DSpec(
        out[1], out[2], out[3], x[1], weight[2:], strides, pads, dilation, int(call.attrs.groups)
    )


def _numbers(attrs: Any) -> Any:
    """Padding, strides and dilation as tuples of int; their lengths follow from the operator."""
    return tuple(tuple(int(v) for v in getattr(attrs, n)) for n in ("padding", "strides", "dilation"))


def _check_layout(call: relax.Call, x: tuple[int, ...]) -> None:
    attrs = call.attrs
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout))
    if layouts not in (("NCHW", "OIHW"), ("NCW", "OIW"), ("NCHW", "IOHW"), ("NCW", "IOW")):
        raise UnsupportedOperatorError(
            "lower layers",
            op_name(call),
            f"layouts {layouts}",
            "NCHW data with OIHW weights",
            "convert the network to NCHW",
        )
    if x[0] != 1:
        raise UnsupportedOperatorError(
            "lower layers",
            op_name(call),
            f"batch of {x[0]}",
            "1 wherever a convolution stands: the device holds one sample",
            "export with batch size 1; frames or windows of one sample go through a convolution one by one",
        )
