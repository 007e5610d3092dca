"""Converters that take the place of TVM's where those drop an argument (0.27) or are missing.

Dropped without a word there: ``alpha`` of ``add`` and ``sub``, ``scale`` and ``input_scale`` of ``elu`` (so SELU loses its scale),
the division by ``alpha`` in ``celu``; nearest upsampling takes half-pixel centres for PyTorch's ⌊i · scale⌋, which differs for other
than whole factors. Missing: ``amax`` and ``amin``. `tests.passes.operator_oracle` compares all of these with PyTorch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx
from tvm import relax

Converter = Callable[[fx.Node, Any], relax.Var]


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    if len(node.args) > index:
        return node.args[index]
    return node.kwargs.get(name, default)


def _scaled_operand(op: Callable[..., relax.Expr], python_op: Callable[..., Any]) -> Converter:
    """``op(a, alpha · b)``."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        alpha: Any = node.kwargs.get("alpha", 1)
        if alpha == 1:
            return importer._binary_op(op, python_op)(node)
        sides: list[Any] = [importer.env[a] if isinstance(a, fx.Node) else a for a in node.args[:2]]
        left, right = sides
        if not isinstance(right, relax.Expr):
            return _emit(importer, op(left, relax.const(float(right) * alpha, "float32")))
        scaled = _emit(importer, relax.op.multiply(right, relax.const(float(alpha), "float32")))
        return _emit(importer, op(left, scaled))

    return convert


def _emit(importer: Any, expr: relax.Expr) -> relax.Var:
    return importer.block_builder.emit(expr)


def _exponential_unit(
    importer: Any, x: relax.Var, alpha: float, scale: float, input_scale: float
) -> relax.Var:
    """scale · (max(x, 0) + α (exp(input_scale · min(x, 0)) − 1)): the exponential of what is negative cannot overflow."""

    def times(value: relax.Var, factor: float) -> relax.Var:
        return (
            value
            if factor == 1.0
            else _emit(importer, relax.op.multiply(value, relax.const(factor, "float32")))
        )

    below = _emit(importer, relax.op.clip(x, float("-inf"), 0.0))
    power = _emit(importer, relax.op.exp(times(below, input_scale)))
    tail = times(_emit(importer, relax.op.subtract(power, relax.const(1.0, "float32"))), alpha)
    return times(_emit(importer, relax.op.add(_emit(importer, relax.op.nn.relu(x)), tail)), scale)


def _elu(node: fx.Node, importer: Any) -> relax.Var:
    defaults = (("alpha", 1.0), ("scale", 1.0), ("input_scale", 1.0))
    alpha, scale, input_scale = (float(_argument(node, i + 1, n, d)) for i, (n, d) in enumerate(defaults))
    return _exponential_unit(importer, importer.env[node.args[0]], alpha, scale, input_scale)


def _celu(node: fx.Node, importer: Any) -> relax.Var:
    alpha = float(_argument(node, 1, "alpha", 1.0))
    return _exponential_unit(importer, importer.env[node.args[0]], alpha, 1.0, 1.0 / alpha)


def _upsample_nearest2d(node: fx.Node, importer: Any) -> relax.Var:
    """Row i reads row ⌊i · s⌋, s being 1/scale_factor where that was given and height/out_height otherwise, in float32."""
    x = importer.env[node.args[0]]
    size = _argument(node, 1, "output_size", None)
    factors = _argument(node, 2, "scale_factors", None)
    extents = [int(d) for d in x.ty.shape][2:]
    counts = [int(s) for s in size] if size else [int(d * f) for d, f in zip(extents, factors, strict=True)]
    if all(n % d == 0 for n, d in zip(counts, extents, strict=True)):
        return _emit(importer, relax.op.image.resize2d(x, counts, layout="NCHW", method="nearest_neighbor"))
    for axis, (extent, count) in enumerate(zip(extents, counts, strict=True)):
        scale = np.float32(extent / count) if size else np.float32(1.0 / factors[axis])
        index = np.minimum(np.floor(np.arange(count, dtype=np.float32) * scale), extent - 1)
        x = _emit(importer, relax.op.take(x, relax.const(index.astype(np.int64), "int64"), axis + 2))
    return x


def _extremum(op: Callable[..., relax.Expr]) -> Converter:
    def convert(node: fx.Node, importer: Any) -> relax.Var:
        axes = _argument(node, 1, "dim", [])
        axes = [axes] if isinstance(axes, int) else list(axes)
        return _emit(
            importer, op(importer.env[node.args[0]], axes or None, bool(_argument(node, 2, "keepdim", False)))
        )

    return convert


CONVERTERS: dict[str, Converter] = {
    "add.Tensor": _scaled_operand(relax.op.add, operator.add),
    "sub.Tensor": _scaled_operand(relax.op.subtract, operator.sub),
    "elu.default": _elu,
    "celu.default": _celu,
    "upsample_nearest2d.vec": _upsample_nearest2d,
    "stop_gradient.default": lambda node, importer: _emit(
        importer, relax.op.grad.no_grad(importer.env[node.args[0]])
    ),
    "amax.default": _extremum(relax.op.max),
    "amin.default": _extremum(relax.op.min),
}
"""ATen operator → converter, for ``custom_convert_map`` of TVM's ``from_exported_program``."""
