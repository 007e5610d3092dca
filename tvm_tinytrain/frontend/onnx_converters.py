"""Where TVM's ONNX converters give tensor-expression calls or more nodes than needed: our own, over theirs."""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.frontend.resampling import half_pixel, interpolate, pick

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_QUANTISED = (
    "QLinear",
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantize",
    "MatMulInteger",
    "ConvInteger",
)
Attributes = dict[str, Any]
Converter = Callable[[relax.BlockBuilder, list[relax.Expr], Attributes], relax.Expr | None]


def unsupported(node: onnx.NodeProto) -> str | None:
    """Why a node cannot be imported, or None."""
    if node.domain not in ("", "ai.onnx"):
        return f"domain {node.domain}"
    if node.op_type in _CONTROL_FLOW:
        return "control flow"
    if node.op_type.startswith(_QUANTISED):
        return "quantised"
    if node.op_type == "BatchNormalization" and any(
        a.name == "training_mode" and a.i for a in node.attribute
    ):
        return "training mode"
    if node.op_type not in _get_convert_map() and node.op_type not in _CONVERTERS:
        return "unknown to TVM's ONNX front end"
    return None


class Importer(ONNXGraphImporter):  # type: ignore[misc, unused-ignore]
    """TVM's importer with the converters below in front of its own, and our errors."""

    def from_onnx(self, graph: onnx.GraphProto, opset: int) -> tvm.IRModule:
        """The graph as a module; an UnsupportedOperatorError names the node."""
        try:
            return super().from_onnx(graph, opset)
        except UnsupportedOperatorError:
            self.bb._end_block()  # TVM would print a warning about it
            raise

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """`unsupported` was asked before."""

    def _construct_nodes(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            single = onnx.GraphProto(node=[node])
            try:
                super()._construct_nodes(single)
            except Exception as error:  # converters raise whatever Python or TVM raises
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                raise UnsupportedOperatorError(
                    "onnx",
                    f"{node.op_type} ({node.name or node.output[0]})",
                    reason,
                    "what TVM's ONNX front end and this one convert",
                    "replace the operator in the model",
                ) from error

    def _convert_operator(
        self, op_name: str, inputs: list[relax.Expr], attrs: Attributes, opset: int
    ) -> relax.Expr:
        converter = _CONVERTERS.get(op_name)
        if converter is not None:
            expr = converter(self.bb, [*inputs, None, None, None], attrs)
            if expr is not None:
                return self.bb.normalize(expr)
        return super()._convert_operator(op_name, inputs, attrs, opset)


def _constant(expr: relax.Expr | None) -> np.ndarray | None:
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def _clip(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """``relax.clip``; a missing or infinite bound leaves relu, maximum or minimum. Where the lower bound is the larger one,
    everything is the upper one."""
    x, low, high = inputs[:3]
    bounds = [None if bound is None else _constant(bound) for bound in (low, high)]
    if any(given is not None and value is None for given, value in zip((low, high), bounds, strict=True)):
        return None
    lo, hi = (None if b is None or not np.isfinite(b) else float(b) for b in bounds)
    if lo is not None and hi is not None:
        return relax.op.clip(x, min(lo, hi), hi)
    if lo is not None:
        return relax.op.nn.relu(x) if lo == 0 else relax.op.maximum(x, relax.const(lo, "float32"))
    return x if hi is None else relax.op.minimum(x, relax.const(hi, "float32"))


def _pad(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """``relax.nn.pad``; cropping (negative widths) is a slice."""
    x, pads, value, axes = inputs[:4]
    widths, rank = _constant(pads), len(x.ty.shape)
    if widths is None:
        return None
    chosen = _constant(axes)
    order = range(rank) if chosen is None else [int(a) % rank for a in chosen]
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(order):
        before[axis], after[axis] = int(widths[position]), int(widths[len(widths) // 2 + position])
    if any(w < 0 for w in (*before, *after)):
        ends = [int(d) + min(0, a) for d, a in zip(x.ty.shape, after, strict=True)]
        begins = [max(0, -b) for b in before]
        x = bb.normalize(relax.op.strided_slice(x, list(range(rank)), begins, ends))
    mode = attrs.get("mode", b"constant").decode()
    modes = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    flat = [max(0, w) for pair in zip(before, after, strict=True) for w in pair]
    number = _constant(value)
    return relax.op.nn.pad(x, flat, modes[mode], 0.0 if number is None else float(number.reshape(())))


def _dropout(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """The identity."""
    training = _constant(inputs[2])
    if training is not None and bool(training):
        raise ValueError("training_mode is true")
    return inputs[0]


def _tile(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """``relax.tile``."""
    repeats = _constant(inputs[1])
    return None if repeats is None else relax.op.tile(inputs[0], [int(r) for r in repeats])


def _einsum(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """A sum of products of two tensors as a matrix product: axes of both and the result first, those that are summed inside."""
    operands = [x for x in inputs if x is not None]
    if len(operands) != 2:
        return None
    a, b, out = _terms(attrs["equation"].decode().replace(" ", ""), [len(x.ty.shape) for x in operands])
    plain = all(term.isalpha() and len(set(term)) == len(term) for term in (a, b, out) if term)
    axes = [
        (k, int(d)) for t, x in zip((a, b), operands, strict=True) for k, d in zip(t, x.ty.shape, strict=True)
    ]
    size = dict(axes)
    if not plain or any(size[k] != d for k, d in axes):
        return None
    both, inner = [k for k in a if k in b and k in out], [k for k in a if k in b and k not in out]
    mine, other = ([k for k in t if k in out and k not in both] for t in (a, b))

    def matrix(x: relax.Expr, term: str, rows: list[str], columns: list[str]) -> relax.Expr:
        alone = [i for i, k in enumerate(term) if k not in (*both, *rows, *columns)]
        x = bb.emit(relax.op.sum(x, alone)) if alone else x
        left = [k for k in term if k in (*both, *rows, *columns)]
        x = bb.emit(relax.op.permute_dims(x, [left.index(k) for k in (*both, *rows, *columns)]))
        return bb.emit(relax.op.reshape(x, [math.prod(size[k] for k in g) for g in (both, rows, columns)]))

    y = bb.emit(relax.op.matmul(matrix(operands[0], a, mine, inner), matrix(operands[1], b, inner, other)))
    order = [*both, *mine, *other]
    y = bb.emit(relax.op.reshape(y, [size[k] for k in order]))
    return relax.op.permute_dims(y, [order.index(k) for k in out])


def _terms(equation: str, ranks: list[int]) -> list[str]:
    """The axes of the operands and of the result by letters: "…" spelt out, and a result that is not given as ONNX says."""
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    more = [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True)]
    free = [k for k in string.ascii_letters if k not in equation][: max(more)]
    letters = ["".join(free[len(free) - n :]) for n in more]
    if not arrow:
        once = sorted(k for k in left if k.isalpha() and left.count(k) == 1)
        out = ("..." if "..." in left else "") + "".join(once)
    spelt = [t.replace("...", new) for t, new in zip(terms, letters, strict=True)]
    return [*spelt, out.replace("...", "".join(free))]


def _gather(along: Callable[..., relax.Expr]) -> Converter:
    """``along(x, index, axis)`` by a constant index whose negative entries count from the end here, not on the device."""

    def convert(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
        x, index, axis = inputs[0], _constant(inputs[1]), int(attrs.get("axis", 0))
        if index is None or not isinstance(x.ty, relax.TensorType):
            return None
        index = index.astype(np.int64)
        from_start = np.where(index < 0, index + int(x.ty.shape[axis]), index)
        return along(x, relax.const(from_start, "int64"), axis)

    return convert


def _gemm(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """α·A·B + β·C with the scales on the parameters, where they are folded."""
    a, b, c = inputs[:3]
    alpha, beta = float(attrs.get("alpha", 1.0)), float(attrs.get("beta", 1.0))
    if alpha != 1.0:
        b = relax.op.multiply(b, relax.const(alpha, "float32"))
    if attrs.get("transA", 0):
        a = relax.op.permute_dims(a, [1, 0])
    if attrs.get("transB", 0):
        b = relax.op.permute_dims(b, [1, 0])
    y = relax.op.matmul(a, b)
    if c is None:
        return y
    return relax.op.add(y, c if beta == 1.0 else relax.op.multiply(c, relax.const(beta, "float32")))


def _resize(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """By tables where scales are not the ratios of the sizes, for which TVM takes them, and along one axis, for which it has a loop."""
    x, shape = inputs[0], [int(d) for d in inputs[0].ty.shape]
    scales, sizes = (None if v is None or v.size == 0 else v for v in map(_constant, inputs[2:4]))
    if attrs.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise ValueError("keep_aspect_ratio_policy other than stretch")
    if attrs.get("antialias", 0) and (scales is None or (scales < 1).any()):
        raise ValueError("antialias")
    if scales is None:
        if sizes is not None and list(sizes[:2]) != shape[:2]:
            raise ValueError("sizes of other axes than height and width")
        if sizes is None or len(shape) == 4:
            return None
        scales = sizes / np.array(shape)
    exact = scales.astype(np.float32) * np.array(shape, np.float32)
    counts = np.floor(exact).astype(int) if sizes is None else sizes.astype(int)
    whole = (sizes is not None or (counts == exact).all()) and (scales[:2] == 1).all()
    mode = attrs.get("mode", b"nearest").decode()
    transformation = attrs.get("coordinate_transformation_mode", b"half_pixel").decode()
    rounding = attrs.get("nearest_mode", b"round_prefer_floor").decode()
    known = mode in ("nearest", "linear") and transformation in _POSITIONS
    if whole and (len(shape) == 4 or not known):
        return None
    if not known:
        raise ValueError(f"scales {scales.tolist()} of {shape} with mode {mode} and {transformation}")
    for axis, (scale, count) in enumerate(zip(scales, counts, strict=True)):
        if scale == 1:
            continue
        positions = _POSITIONS[transformation](int(count), scale)
        if mode == "linear":
            x = interpolate(bb.emit, x, axis, positions)
        else:
            x = pick(bb.emit, x, axis, _ROUNDINGS[rounding](positions))
    return x


_POSITIONS: dict[str, Callable[[int, float], np.ndarray]] = {
    "half_pixel": lambda count, scale: half_pixel(count, 1 / scale),
    "pytorch_half_pixel": lambda count, scale: half_pixel(count, 1 / scale) * (count > 1),
    "asymmetric": lambda count, scale: np.arange(count, dtype=np.float32) / np.float32(scale),
}
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _pow(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """A known exponent of another type is one of float32."""
    exponent = _constant(inputs[1])
    if exponent is None or exponent.dtype == np.float32 or str(inputs[0].ty.dtype) != "float32":
        return None
    return relax.op.power(inputs[0], relax.const(exponent.astype(np.float32)))


def _celu(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """max(x, 0) + α (exp(min(x, 0) / α) − 1)."""
    x, alpha = inputs[0], relax.const(float(attrs.get("alpha", 1.0)), "float32")
    below = bb.emit(relax.op.divide(bb.emit(relax.op.clip(x, float("-inf"), 0.0)), alpha))
    power = bb.emit(relax.op.subtract(bb.emit(relax.op.exp(below)), relax.const(1.0, "float32")))
    return relax.op.add(bb.emit(relax.op.nn.relu(x)), bb.emit(relax.op.multiply(power, alpha)))


def _cumsum(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """From the end: of what is turned round."""
    x, axis = inputs[0], _constant(inputs[1])
    if axis is None:
        return None
    along, exclusive = int(axis.reshape(())), bool(attrs.get("exclusive", 0))
    if not attrs.get("reverse", 0):
        return relax.op.cumsum(x, along, exclusive=exclusive)
    turned = bb.emit(relax.op.cumsum(bb.emit(relax.op.flip(x, along)), along, exclusive=exclusive))
    return relax.op.flip(turned, along)


def _cast(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
    """From float32 to integers: the fraction is cut off; what no integer holds is not looked for."""
    x, to = inputs[0], onnx.helper.tensor_dtype_to_np_dtype(attrs["to"])
    if not isinstance(x, relax.Var) or str(x.ty.dtype) != "float32" or to.kind not in "iu":
        return None
    return relax.op.astype(x, to.name)


def _reduce_over_nothing(each: Callable[[relax.Expr], relax.Expr]) -> Converter:
    """What a reduction makes of every element where ``noop_with_empty_axes`` leaves no axis to reduce; otherwise TVM's converter."""

    def convert(bb: relax.BlockBuilder, inputs: list[relax.Expr], attrs: Attributes) -> relax.Expr | None:
        axes = _constant(inputs[1])
        no_axes = inputs[1] is None or (axes is not None and axes.size == 0)
        return each(inputs[0]) if no_axes and attrs.get("noop_with_empty_axes", 0) else None

    return convert


_CONVERTERS: dict[str, Converter] = {
    "Cast": _cast,
    "Celu": _celu,
    "Clip": _clip,
    "CumSum": _cumsum,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gather": _gather(relax.op.take),
    "GatherElements": _gather(relax.op.gather_elements),
    "Gemm": _gemm,
    "Pad": _pad,
    "Pow": _pow,
    "ReduceL1": _reduce_over_nothing(relax.op.abs),
    "ReduceL2": _reduce_over_nothing(relax.op.abs),
    "ReduceLogSum": _reduce_over_nothing(relax.op.log),
    "ReduceLogSumExp": _reduce_over_nothing(lambda x: x),
    "ReduceSumSquare": _reduce_over_nothing(lambda x: relax.op.multiply(x, x)),
    "Resize": _resize,
    "Tile": _tile,
}
