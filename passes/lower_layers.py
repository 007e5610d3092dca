"""LowerLayers: convolutions and linear layers become kernels with bias and clamp inside, and get their layer ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import ImportModelError, UnsupportedOperatorError
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv2d_transpose import conv2d_transpose
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear
from tvm_tinytrain.passes.layer_chains import CONVOLUTIONS, Chain, find_chains
from tvm_tinytrain.passes.reverse_mode import differentiable_variables
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, op_name, rebuild, shape_of
from tvm_tinytrain.passes.state import Layer, get_fixed, get_values, with_layers, with_values


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
        chains, absorbed = find_chains(func, set(values))
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


def _as_vectors(chains: dict[relax.Var, Chain], values: dict[str, np.ndarray]) -> dict[relax.Var, relax.Var]:
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


def _as_kernel_weight(chain: Chain, weight: relax.Var, values: dict[str, np.ndarray]) -> relax.Var:
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
    r: Rebuilder, chain: Chain, layers: list[Layer] | None, fixed: frozenset[str], end: relax.Var
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
    wanted = ("NCHW", "IOHW" if "transpose" in op_name(call) else "OIHW", "NCHW")
    if len(x) == 3:
        wanted = tuple(layout.replace("H", "") for layout in wanted)  # type: ignore[assignment]
    data = str(attrs.data_layout)
    layouts = (data, str(attrs.kernel_layout), str(attrs.out_layout) or data)
    if layouts != wanted:
        raise UnsupportedOperatorError(
            "lower layers",
            op_name(call),
            f"layouts {layouts} of data, weights and result",
            f"{wanted[0]} data with {wanted[1]} weights, {wanted[2]} results",
            f"convert the network to {wanted[0]}",
        )
    if x[0] != 1:
        raise UnsupportedOperatorError(
            "lower layers",
            op_name(call),
            f"batch of {x[0]}",
            "1 wherever a convolution stands: the device holds one sample",
            "export with batch size 1; frames or windows of one sample go through a convolution one by one",
        )
