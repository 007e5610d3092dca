"""An ONNX graph without shape arithmetic: constants and shapes evaluated, paddings explicit, parameters named.

ONNX's own shape inference and reference evaluator do the work, so the semantics are ONNX's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from math import ceil
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tvm_tinytrain.errors import ShapeError
from tvm_tinytrain.frontend.names import NameSupply

_CONSTANT_INPUTS = {  # operands that are options, not parameters, even where they are lists of floats
    "Clip": (1, 2), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "Dropout": (1, 2), "Upsample": (1,),
}  # fmt: skip
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RANDOM = ("Random", "Multinomial", "Bernoulli", "Dropout")
_ROUNDS = 8  # each folds what the last one's shapes made known


def make_static(model: onnx.ModelProto, opset: int, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A model of the same function whose only initialisers are float parameters; all other constants are Constant nodes.

    Raises ShapeError for an input whose shape stays symbolic.
    """
    static = copy.deepcopy(model)
    known = {t.name: numpy_helper.to_array(t) for t in static.graph.initializer}
    weights = _weights_of_layers(static.graph, known)
    inputs = [i for i in static.graph.input if i.name not in known]
    for value in inputs:
        _fix_shape(value, shapes)
    _replace(static.graph.input, inputs)
    for _ in range(_ROUNDS):
        del static.graph.value_info[:]
        inferred = onnx.shape_inference.infer_shapes(static, strict_mode=True, data_prop=True)
        sizes = _static_shapes(inferred.graph) | {n: a.shape for n, a in known.items()}
        before = len(static.graph.node)
        left = [n for n in static.graph.node if not _fold(n, known, weights, sizes, opset)]
        _replace(static.graph.node, left)
        _replace(static.graph.initializer, [numpy_helper.from_array(a, n) for n, a in known.items()])
        if len(static.graph.node) == before:
            break
    _replace(static.graph.output, inferred.graph.output)
    for node in static.graph.node:
        _explicit_padding(node, sizes)
        _explicit_axes(node, known, sizes)
    _name_parameters(static.graph, known)
    return static


def _fix_shape(value: onnx.ValueInfoProto, shapes: dict[str, tuple[int, ...]]) -> None:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim if tensor.HasField("shape") else []
    if value.name in shapes:
        wanted = [int(d) for d in shapes[value.name]]
        value.CopyFrom(helper.make_tensor_value_info(value.name, tensor.elem_type, wanted))
        return
    symbolic = [i for i, d in enumerate(dims) if not d.HasField("dim_value") or d.dim_value <= 0]
    if symbolic == [0]:
        dims[0].dim_value = 1
    elif symbolic or not tensor.HasField("shape"):
        shown = [d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in dims]
        raise ShapeError(
            "onnx",
            f"input {value.name}",
            f"shape {shown}" if tensor.HasField("shape") else "no shape",
            "numbers; a symbol as first dimension only, which becomes a batch of 1",
            f"fix it: from_onnx(model, input_shapes={{{value.name!r}: (1, …)}})",
        )


def _static_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors whose dimensions are numbers."""
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            found[value.name] = tuple(int(d.dim_value) for d in tensor.shape.dim)
    return found


def _weights_of_layers(graph: onnx.GraphProto, known: dict[str, np.ndarray]) -> set[str]:
    """The initialisers that layers read as weights, as they are stored or transposed."""
    transposed = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose"}
    read = {n.input[1] for n in graph.node if n.op_type in _LAYERS}
    return {transposed.get(name, name) for name in read} & known.keys()


def _fold(
    node: onnx.NodeProto,
    known: dict[str, np.ndarray],
    weights: set[str],
    sizes: dict[str, tuple[int, ...]],
    opset: int,
) -> bool:
    """Whether ``node`` gives constants; then they are in ``known``, and the node can go.

    What is computed from ``weights`` stays, so that it follows them when they are trained. An Identity is a copy: that is how PyTorch's
    exporter writes tensors that happen to have equal values, such as the batch norms of a fresh network.
    """
    if node.op_type == "Shape" and node.input[0] in sizes:
        options = {a.name: a.i for a in node.attribute}
        shape = sizes[node.input[0]][options.get("start", 0) : options.get("end")]
        known[node.output[0]] = np.array(shape, np.int64)
        return True
    if node.op_type.startswith(_RANDOM) or (not node.input and node.op_type != "Constant"):
        return False
    if not all(name in known for name in node.input if name):
        return False
    if node.op_type != "Identity" and weights.intersection(node.input):
        return False
    feeds = {name: known[name] for name in node.input if name}
    try:
        results = ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)
    except Exception:  # an operator that ONNX's evaluator lacks is left to the converters
        return False
    known |= {name: np.asarray(r) for name, r in zip(node.output, results, strict=True) if name}
    return True


def _explicit_padding(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]]) -> None:
    """SAME_UPPER and SAME_LOWER of convolutions and pools as ``pads``."""
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    mode = attrs.get("auto_pad", b"NOTSET").decode() if "auto_pad" in attrs else "NOTSET"
    if node.op_type not in ("Conv", "MaxPool", "AveragePool") or not mode.startswith("SAME"):
        return
    extents = sizes[node.input[0]][2:]
    ones = [1] * len(extents)
    kernel = attrs.get("kernel_shape") or sizes[node.input[1]][2:]
    strides, dilations = attrs.get("strides", ones), attrs.get("dilations", ones)
    begins, ends = [], []
    for extent, size, stride, dilation in zip(extents, kernel, strides, dilations, strict=True):
        total = max(0, (ceil(extent / stride) - 1) * stride + (size - 1) * dilation + 1 - extent)
        less, more = total // 2, total - total // 2
        begins.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    kept = [a for a in node.attribute if a.name not in ("auto_pad", "pads")]
    _replace(node.attribute, [*kept, helper.make_attribute("pads", begins + ends)])


def _explicit_axes(
    node: onnx.NodeProto, known: dict[str, np.ndarray], sizes: dict[str, tuple[int, ...]]
) -> None:
    """Scales and sizes of ``Resize`` for all axes instead of some."""
    axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if node.op_type != "Resize" or axes is None or node.input[0] not in sizes:
        return
    shape = sizes[node.input[0]]
    places = [a % len(shape) for a in axes]
    whole = {1: [0.0] * len(shape) + [1.0] * len(shape), 2: [1.0] * len(shape), 3: list(shape)}
    for index, name in enumerate(node.input):
        if index == 0 or name not in known or known[name].size == 0:
            continue
        full = np.array(whole[index], known[name].dtype)
        full[[*places, *(p + len(shape) for p in places)] if index == 1 else places] = known[name]
        node.input[index] = f"{name}:{node.output[0]}"
        known[node.input[index]] = full
    _replace(node.attribute, [a for a in node.attribute if a.name != "axes"])


def _name_parameters(graph: onnx.GraphProto, known: dict[str, np.ndarray]) -> None:
    """Parameters become initialisers named by C identifiers, other constants Constant nodes; unused ones go."""
    names = NameSupply()
    renamed = {value.name: names.unique(value.name) for value in graph.input}
    for value in graph.input:
        value.name = renamed[value.name]
    parameters: dict[str, onnx.TensorProto] = {}
    constants: dict[str, onnx.NodeProto] = {}

    def use(name: str, option: bool) -> str:
        if name not in known:
            return renamed.get(name, name)
        array = known[name]
        if option or array.ndim == 0 or not np.issubdtype(array.dtype, np.floating):
            tensor = numpy_helper.from_array(array)
            constants[name] = helper.make_node("Constant", [], [f"{name}:constant"], value=tensor)
            return f"{name}:constant"
        if name not in parameters:
            parameters[name] = numpy_helper.from_array(array, names.unique(name))
        return str(parameters[name].name)

    for node in graph.node:
        options = _CONSTANT_INPUTS.get(node.op_type, ())
        _replace(node.input, [use(name, i in options) for i, name in enumerate(node.input)])
    for value in graph.output:
        value.name = use(value.name, option=False)
    _replace(graph.initializer, list(parameters.values()))
    _replace(graph.node, [*constants.values(), *graph.node])


def _replace(field: Any, items: Iterable[Any]) -> None:
    """The new content of a repeated field."""
    copies = [copy.deepcopy(item) for item in items]
    del field[:]
    field.extend(copies)
