"""Converters that take the place of TVM's where those drop an argument (0.27) or are missing.

Dropped without a word there: ``alpha`` of ``add`` and ``sub``, ``scale`` and ``input_scale`` of ``elu`` (so SELU loses its scale),
the division by ``alpha`` in ``celu``; nearest upsampling takes half-pixel centres for PyTorch's ⌊i · scale⌋, which differs for other
than whole factors; bilinear upsampling takes the ratio of the sizes for 1/scale_factor; antialiasing; ``divisor_override``
of average pools; the indices of a max pool are zeros; a number by which is divided and rounded has a type of its own. Missing:
``amax``, ``amin``, ``prod`` along an axis, ``var_mean`` and adaptive max pools.
`tests.passes.operator_oracle` compares all of these with PyTorch.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx
from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.frontend.resampling import half_pixel, interpolate, pick

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


def _rounded_division(node: fx.Node, importer: Any) -> relax.Var:
    """By a number of the other operand's type; integers are divided as integers."""
    sides: list[Any] = [importer.env[a] if isinstance(a, fx.Node) else a for a in node.args[:2]]
    left, right = sides
    if not isinstance(right, relax.Expr):
        right = relax.const(right, left.ty.dtype)
    mode = node.kwargs.get("rounding_mode")
    if mode == "floor":
        return _emit(importer, relax.op.floor_divide(left, right))
    quotient = _emit(importer, relax.op.divide(left, right))
    whole = mode is None or "int" in str(left.ty.dtype)
    return quotient if whole else _emit(importer, relax.op.trunc(quotient))


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
    size, factors, extents, counts = _resizing(node, x, 2)
    if all(n % d == 0 for n, d in zip(counts, extents, strict=True)):
        return _emit(importer, relax.op.image.resize2d(x, counts, layout="NCHW", method="nearest_neighbor"))
    for axis, (extent, count) in enumerate(zip(extents, counts, strict=True)):
        scale = np.float32(extent / count) if size else np.float32(1.0 / factors[axis])
        rows = np.floor(np.arange(count, dtype=np.float32) * scale)
        x = pick(importer.block_builder.emit, x, axis + 2, rows)
    return x


def _resizing(node: fx.Node, x: relax.Var, factors_at: int) -> tuple[Any, Any, list[int], list[int]]:
    """What was given, output_size or scale_factors; then height and width, before and after."""
    size = _argument(node, 1, "output_size", None)
    factors = _argument(node, factors_at, "scale_factors", None)
    extents = [int(d) for d in x.ty.shape][2:]
    counts = [int(s) for s in size] if size else [int(d * f) for d, f in zip(extents, factors, strict=True)]
    return size, factors, extents, counts


def _upsample_bilinear2d(node: fx.Node, importer: Any) -> relax.Var:
    """Without aligned corners and with scale factors, output i lies at (i + ½) / scale_factor − ½, whatever the sizes are."""
    x = importer.env[node.args[0]]
    size, factors, extents, counts = _resizing(node, x, 3)
    corners = bool(_argument(node, 2, "align_corners", False))
    if size or corners or all(n == d * f for n, d, f in zip(counts, extents, factors, strict=True)):
        mode = "align_corners" if corners else "half_pixel"
        resized = relax.op.image.resize2d(
            x, counts, layout="NCHW", method="linear", coordinate_transformation_mode=mode
        )
        return _emit(importer, resized)
    for axis, (count, factor) in enumerate(zip(counts, factors, strict=True), start=2):
        x = interpolate(importer.block_builder.emit, x, axis, half_pixel(count, 1.0 / factor))
    return x


def _upsample_bilinear2d_aa(node: fx.Node, importer: Any) -> relax.Var:
    """Where nothing is made smaller there is nothing to smooth."""
    x = importer.env[node.args[0]]
    size = [int(s) for s in _argument(node, 1, "output_size", ())]
    extents = [int(d) for d in x.ty.shape][2:]
    if any(n % d for n, d in zip(size, extents, strict=True)) or _argument(node, 2, "align_corners", False):
        hint = "leave antialias out, or resize the images before the network"
        raise _unsupported(node, f"antialias from {extents} to {size}", "whole factors", hint)
    return _emit(importer, relax.op.image.resize2d(x, size, layout="NCHW", method="linear"))


def _average_pool(rank: int) -> Converter:
    """With ``divisor_override`` the sum over each window is divided by that."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        divisor = _argument(node, 6, "divisor_override", None)
        if divisor is None:
            return getattr(importer, f"_avg_pool{rank}d")(node)
        if _argument(node, 4, "ceil_mode", False):
            hint = "leave ceil_mode or divisor_override out"
            raise _unsupported(node, "divisor_override with ceil_mode", "either", hint)
        window = list(_argument(node, 1, "kernel_size", ()))
        window = window * rank if len(window) == 1 else window
        stride, padding = _argument(node, 2, "stride", None) or None, _argument(node, 3, "padding", 0)
        pool = getattr(importer, f"_avg_pool{rank}d_impl")
        mean = pool(importer.env[node.args[0]], window, stride, padding, False, True)
        return _emit(importer, relax.op.multiply(mean, relax.const(math.prod(window) / divisor, "float32")))

    return convert


def _max_pool(rank: int) -> Converter:
    """Maxima without their indices, for which TVM gives zeros."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        _refuse_indices(node)
        return getattr(importer, f"_max_pool{rank}d_with_indices")(node)

    return convert


def _refuse_indices(node: fx.Node) -> None:
    """Raises UnsupportedOperatorError where the second result of a max pool is read."""
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        hint = "read the maxima alone"
        raise _unsupported(node, "the indices of maxima", "return_indices=False", hint)


def _adaptive_max_pool(rank: int) -> Converter:
    """Output i of m covers ⌊i · n / m⌋ to ⌈(i + 1) · n / m⌉ of n: as a max pool of windows side by side, all of one length.

    Where m does not divide n, windows overlap or differ: their elements are picked first, and short ones repeat their last,
    which is no other maximum and never the first one, where the gradient goes.
    """

    def convert(node: fx.Node, importer: Any) -> relax.Expr:
        _refuse_indices(node)
        x = importer.env[node.args[0]]
        extents = [int(d) for d in x.ty.shape][-rank:]
        window = []
        for axis, (n, m) in enumerate(zip(extents, _argument(node, 1, "output_size", ()), strict=True)):
            start, end = np.arange(m) * n // m, -(np.arange(1, m + 1) * -n // m)
            window.append(int(max(end - start)))
            if n % m:
                rows = np.minimum(start[:, None] + np.arange(window[-1]), end[:, None] - 1)
                x = pick(importer.block_builder.emit, x, len(x.ty.shape) - rank + axis, rows.ravel())
        pooled = getattr(importer, f"_max_pool{rank}d_impl")(x, window)
        return _emit(importer, relax.Tuple([pooled, relax.op.zeros_like(pooled)]))

    return convert


def _index(node: fx.Node, importer: Any) -> relax.Var:
    """Index tensors at neighbouring axes pick one element for each set of their values: of these axes as one, at one index."""
    x, indices = importer.retrieve_args(node)
    given = {axis: index for axis, index in enumerate(indices) if index is not None}
    if any(str(index.ty.dtype) in ("bool", "uint8") for index in given.values()):
        hint = "index by positions, mask.nonzero().flatten() in the network's constructor"
        raise _unsupported(node, "a mask as index", "integers", hint)
    first, last = min(given), max(given)
    if len(given) != last - first + 1:
        hint = "index one axis after the other"
        raise _unsupported(node, f"indices at axes {list(given)}", "neighbouring axes", hint)
    emit = importer.block_builder.emit
    extents = [int(d) for d in x.ty.shape]
    shapes = [tuple(int(d) for d in index.ty.shape) for index in given.values()]
    out = np.broadcast_shapes(*shapes)
    if _own_axes(shapes, out):  # one after the other is the same, with smaller tables
        for axis, index in given.items():
            x = emit(relax.op.take(x, emit(relax.op.reshape(index, (-1,))), axis))
        return x
    position = given[first]
    for axis in range(first + 1, last + 1):
        if axis == first + 1:
            position = _from_start(importer, position, extents[first])
        scaled = emit(relax.op.multiply(position, relax.const(extents[axis], position.ty.dtype)))
        position = emit(relax.op.add(scaled, _from_start(importer, given[axis], extents[axis])))
    joined = (*extents[:first], math.prod(extents[first : last + 1]), *extents[last + 1 :])
    table = emit(relax.op.reshape(position, (-1,)))
    picked = emit(relax.op.take(emit(relax.op.reshape(x, joined)), table, first))
    return _emit(importer, relax.op.reshape(picked, (*extents[:first], *out, *extents[last + 1 :])))


def _own_axes(shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> bool:
    """Whether the k-th of several index tensors varies along the k-th axis of their common shape alone."""
    alone = [tuple(d if i == k else 1 for i, d in enumerate(out)) for k in range(len(shapes))]
    return len(out) == len(shapes) and [(1,) * (len(out) - len(s)) + s for s in shapes] == alone


def _from_start(importer: Any, index: relax.Var, extent: int) -> relax.Var:
    """Indices from the end as indices from the start."""
    return _emit(importer, relax.op.floor_mod(index, relax.const(extent, index.ty.dtype)))


def _group_norm(node: fx.Node, importer: Any) -> relax.Var:
    """Of weights or biases that are left out: ones and zeros."""
    x = importer.env[node.args[0]]
    shape = [int(d) for d in x.ty.shape]
    native = "native" in str(node.target)
    groups, epsilon = (
        (_argument(node, 6, "group", 1), 7) if native else (_argument(node, 1, "num_groups", 1), 4)
    )
    first = 1 if native else 2
    gamma, beta = (
        importer.env[given]
        if isinstance(given := _argument(node, first + i, name, None), fx.Node)
        else relax.const(np.full(shape[1], value, np.float32), "float32")
        for i, (name, value) in enumerate((("weight", 1.0), ("bias", 0.0)))
    )
    normed = relax.op.nn.group_norm(
        x,
        gamma,
        beta,
        num_groups=int(groups),
        channel_axis=1,
        axes=list(range(2, len(shape))),
        epsilon=float(_argument(node, epsilon, "eps", 1e-5)),
    )
    return _emit(importer, normed)


def _unsupported(node: fx.Node, found: str, allowed: str, hint: str) -> UnsupportedOperatorError:
    return UnsupportedOperatorError("frontend", f"{node.target} ({node.name})", found, allowed, hint)


def _extremum(op: Callable[..., relax.Expr]) -> Converter:
    def convert(node: fx.Node, importer: Any) -> relax.Var:
        axes = _argument(node, 1, "dim", [])
        axes = [axes] if isinstance(axes, int) else list(axes)
        return _emit(
            importer, op(importer.env[node.args[0]], axes or None, bool(_argument(node, 2, "keepdim", False)))
        )

    return convert


def _clamp(node: fx.Node, importer: Any) -> relax.Var:
    """Where the lower bound is the larger one, everything is the upper one."""
    low, high = _argument(node, 1, "min", None), _argument(node, 2, "max", None)
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
        return _emit(importer, relax.op.clip(importer.env[node.args[0]], float(high), float(high)))
    return importer._clamp(node)


def _min_along(node: fx.Node, importer: Any) -> relax.Expr:
    """As ``max.dim``, which TVM has."""
    axis, kept = int(_argument(node, 1, "dim", 0)), bool(_argument(node, 2, "keepdim", False))
    x = importer.env[node.args[0]]
    both = _emit(importer, relax.op.topk(x, k=1, axis=axis, largest=False, ret_type="both", dtype="int64"))
    found = [_emit(importer, relax.TupleGetItem(both, i)) for i in range(2)]
    if not kept:
        found = [_emit(importer, relax.op.squeeze(v, [axis])) for v in found]
    return _emit(importer, relax.Tuple(found))


def _var_mean(node: fx.Node, importer: Any) -> relax.Expr:
    """Σ (x − mean)² / (n − correction), and the mean."""
    x = importer.env[node.args[0]]
    extents = [int(d) for d in x.ty.shape]
    axes = _argument(node, 1, "dim", None) or list(range(len(extents)))
    given: Any = node.kwargs.get("correction", 1)
    correction, kept = 1 if given is None else given, bool(node.kwargs.get("keepdim", False))
    count = math.prod(extents[int(a)] for a in axes)
    variance = _emit(importer, relax.op.variance(x, axes, kept))
    factor = relax.const(count / (count - correction), "float32")
    mean = _emit(importer, relax.op.mean(x, axes, kept))
    return _emit(importer, relax.Tuple([_emit(importer, relax.op.multiply(variance, factor)), mean]))


def _grid_sample(node: fx.Node, importer: Any) -> relax.Var:
    """PyTorch's grid ends with (x, y); Relax wants these in front of rows and columns."""
    method = ("bilinear", "nearest", "bicubic")[int(_argument(node, 2, "interpolation_mode", 0))]
    padding = ("zeros", "border", "reflection")[int(_argument(node, 3, "padding_mode", 0))]
    grid = _emit(importer, relax.op.permute_dims(importer.env[node.args[1]], [0, 3, 1, 2]))
    sampled = relax.op.image.grid_sample(
        importer.env[node.args[0]],
        grid,
        method,
        "NCHW",
        padding,
        bool(_argument(node, 4, "align_corners", False)),
    )
    return _emit(importer, sampled)


CONVERTERS: dict[str, Converter] = {
    "add.Tensor": _scaled_operand(relax.op.add, operator.add),
    "sub.Tensor": _scaled_operand(relax.op.subtract, operator.sub),
    "elu.default": _elu,
    "celu.default": _celu,
    "div.Tensor_mode": _rounded_division,
    "index.Tensor": _index,
    "grid_sampler_2d.default": _grid_sample,
    "group_norm.default": _group_norm,
    "native_group_norm.default": _group_norm,
    "upsample_nearest2d.vec": _upsample_nearest2d,
    "upsample_bilinear2d.vec": _upsample_bilinear2d,
    "_upsample_bilinear2d_aa.default": _upsample_bilinear2d_aa,
    "avg_pool2d.default": _average_pool(2),
    "avg_pool3d.default": _average_pool(3),
    "max_pool2d_with_indices.default": _max_pool(2),
    "max_pool3d_with_indices.default": _max_pool(3),
    "adaptive_max_pool2d.default": _adaptive_max_pool(2),
    "adaptive_max_pool3d.default": _adaptive_max_pool(3),
    "stop_gradient.default": lambda node, importer: _emit(
        importer, relax.op.grad.no_grad(importer.env[node.args[0]])
    ),
    "amax.default": _extremum(relax.op.max),
    "amin.default": _extremum(relax.op.min),
    "_assert_async.msg": lambda node, importer: importer.env[node.args[0]],  # what the exporter checks itself
    "clamp.default": _clamp,
    "min.dim": _min_along,
    "var_mean.correction": _var_mean,
    "prod.dim_int": lambda node, importer: importer._prod(node),
}
"""ATen operator → converter, for ``custom_convert_map`` of TVM's ``from_exported_program``."""
