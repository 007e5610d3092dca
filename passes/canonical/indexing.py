"""Slices, gathers and resizing: known indices become slices, blocks or tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from tvm_tinytrain.passes.canonical.evaluation import taken
from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.resize import BilinearSpec, UpsampleSpec, bilinear, upsample
from tvm_tinytrain.passes.kernels.slicing import GatherSpec, gather
from tvm_tinytrain.passes.rewriting import dtype_of, shape_of, slice_range

_COPIES: dict[str, Any] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""Modes of padding by NumPy's names."""


@rule("relax.strided_slice")
def reversed_slice(ctx: Rewrite) -> relax.Expr | None:
    """A slice that reads an axis backwards, as tables."""
    begin, steps = slice_range(ctx.call)
    if min(steps, default=1) > 0 or not ctx.is_float or 0 in ctx.out_shape:
        return None
    x = ctx.call.args[0]
    for axis, (first, step, count) in enumerate(zip(begin, steps, ctx.out_shape, strict=True)):
        x = take_along(ctx, x, axis, first + step * np.arange(count))
    return x


@rule("relax.strided_slice")
def whole_slice(ctx: Rewrite) -> relax.Expr | None:
    """A slice that takes everything in order."""
    whole = ctx.shape() == ctx.out_shape and min(slice_range(ctx.call)[1], default=1) > 0
    return ctx.args[0] if whole else None


@rule("relax.nn.pad")
def copied_border(ctx: Rewrite) -> relax.Expr | None:
    """Padding by what stands inside, as tables."""
    mode = _COPIES.get(str(ctx.attrs.pad_mode))
    if mode is None or not ctx.is_float:
        return None
    x, widths = ctx.call.args[0], [int(w) for w in ctx.attrs.pad_width]
    for axis, (size, *around) in enumerate(zip(shape_of(x), widths[::2], widths[1::2], strict=True)):
        x = take_along(ctx, x, axis, np.pad(np.arange(size), around, mode=mode))
    return x


@rule("relax.take")
def take(ctx: Rewrite) -> relax.Expr | None:
    """Of a known index along one axis: a slice, a block-wise repetition, or a table."""
    index = ctx.known(ctx.call.args[1])
    x = ctx.call.args[0]
    if index is None or ctx.attrs.axis is None or dtype_of(x) != "float32":
        return None
    shape = shape_of(x)
    axis = int(ctx.attrs.axis) % len(shape)
    positions = taken(ctx.call, index, shape[axis]).astype(np.int64).reshape(-1)
    return ctx.view(take_along(ctx, x, axis, positions), ctx.out_shape)


@rule("relax.gather_elements")
def gather_elements(ctx: Rewrite) -> relax.Expr | None:
    """At known places of its own for every element: a table into the flat tensor."""
    x, index = ctx.call.args[0], ctx.known(ctx.call.args[1])
    if index is None or not ctx.is_float:
        return None
    shape, axis = shape_of(x), int(ctx.attrs.axis) % len(shape_of(x))
    places: list[np.ndarray] = list(np.indices(index.shape))
    places[axis] = np.where(index < 0, index + shape[axis], index)
    flat = np.ravel_multi_index(places, shape).reshape(-1)
    return ctx.view(take_along(ctx, ctx.view(x, (math.prod(shape),)), 0, flat), ctx.out_shape)


def take_along(ctx: Rewrite, x: relax.Expr, axis: int, index: np.ndarray) -> relax.Expr:
    """x[…, index, …] along ``axis``."""
    shape = shape_of(x)
    size, count = shape[axis], len(index)
    if np.array_equal(index, np.arange(size)):
        return x
    steps = np.diff(index)
    step = int(steps[0]) if len(steps) else 1
    if step > 0 and (steps == step).all():
        first = int(index[0])
        return ctx.emit(relax.op.strided_slice(x, [axis], [first], [first + (count - 1) * step + 1], [step]))
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    out = (*shape[:axis], count, *shape[axis + 1 :])
    factor = count // size
    if count % size == 0 and np.array_equal(index, np.arange(count) // factor):
        blocks = UpsampleSpec(outer, size, inner, (factor, 1))
        y = ctx.kernel(upsample(blocks), [ctx.view(x, blocks.x_shape)], blocks.y_shape)
        return ctx.view(y, out)
    spec = GatherSpec(outer, size, inner, count)
    table = relax.const(index.astype(np.int32), "int32")
    return ctx.view(ctx.kernel(gather(spec), [ctx.view(x, spec.x_shape), table], spec.y_shape), out)


@rule("relax.slice_scatter")
def replaced_slice(ctx: Rewrite) -> relax.Expr | None:
    """A tensor part of which is another one: what lies around it and that one side by side, or a table where steps are larger."""
    x, part = ctx.call.args[:2]
    axis, size = int(ctx.attrs.axis) % len(ctx.out_shape), ctx.out_shape[int(ctx.attrs.axis)]
    if not ctx.is_float:
        return None
    begin, end, step = slice(*(int(a.value) for a in ctx.call.args[2:5])).indices(size)
    if step != 1:
        index = np.arange(size)
        index[begin:end:step] = size + np.arange(shape_of(part)[axis])
        return take_along(ctx, ctx.emit(relax.op.concat([x, part], axis)), axis, index)
    around = [(0, begin), (end, size)]
    before, after = (
        [ctx.emit(relax.op.strided_slice(x, [axis], [a], [b]))] if a < b else [] for a, b in around
    )
    parts = [*before, part, *after]
    return ctx.emit(relax.op.concat(parts, axis)) if len(parts) > 1 else part


@rule("relax.topk")
def extremum(ctx: Rewrite) -> relax.Expr | None:
    """The largest or smallest of an axis and where it stands."""
    a, x = ctx.attrs, ctx.call.args[0]
    if int(a.k) != 1 or str(a.ret_type) not in ("both", "values"):
        return None
    value, index = (relax.op.max, relax.op.argmax) if a.largest else (relax.op.min, relax.op.argmin)
    extreme = ctx.emit(value(x, int(a.axis), keepdims=True))
    if str(a.ret_type) == "values":
        return extreme
    where = ctx.emit(index(x, int(a.axis), keepdims=True))
    return relax.Tuple([extreme, ctx.emit(relax.op.astype(where, str(a.dtype)))])


@rule("relax.flip")
def flip(ctx: Rewrite) -> relax.Expr | None:
    """Reversal of one axis, as a table."""
    axis = int(ctx.attrs.axis) % len(ctx.out_shape)
    if not ctx.is_float:
        return None
    return take_along(ctx, ctx.args[0], axis, np.arange(ctx.out_shape[axis])[::-1])


@rule("relax.image.resize2d")
def resize(ctx: Rewrite) -> relax.Expr | None:
    """Nearest by whole factors as blocks, otherwise by tables; linear with exact weights."""
    a, x = ctx.attrs, ctx.call.args[0]
    if str(a.layout) != "NCHW":
        return None
    mode = str(a.coordinate_transformation_mode)
    if str(a.method) == "linear":
        return _linear(ctx, x, mode)
    if str(a.method) != "nearest_neighbor":
        return None
    (height, width), (rows, columns) = shape_of(x)[2:], ctx.out_shape[2:]
    planes = math.prod(ctx.out_shape[:2])
    down, across = (
        nearest_index(size, count, mode, str(a.rounding_method))
        for size, count in ((height, rows), (width, columns))
    )
    if down is None or across is None:
        return None
    factors = (rows // height, columns // width)
    blocks = [np.arange(n) // max(f, 1) for n, f in zip((rows, columns), factors, strict=True)]
    exact = (rows, columns) == (height * factors[0], width * factors[1])
    if exact and np.array_equal(down, blocks[0]) and np.array_equal(across, blocks[1]):
        block = UpsampleSpec(planes, height, width, factors)
        y = ctx.kernel(upsample(block), [ctx.view(x, block.x_shape)], block.y_shape)
        return ctx.view(y, ctx.out_shape)
    return take_along(ctx, take_along(ctx, x, 2, down), 3, across)


def _linear(ctx: Rewrite, x: relax.Expr, mode: str) -> relax.Expr | None:
    counts = ctx.out_shape[2:]
    if mode == "asymmetric":
        for axis, count in enumerate(counts, start=2):
            x = _between(ctx, x, axis, np.arange(count) * (shape_of(x)[axis] / count))
        return x
    if mode not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    if mode == "pytorch_half_pixel":  # a single output is the first element
        for axis, count in enumerate(counts, start=2):
            x = take_along(ctx, x, axis, np.zeros(1, np.int64)) if count == 1 else x
    planes, (height, width), (rows, columns) = math.prod(ctx.out_shape[:2]), shape_of(x)[2:], counts
    spec = BilinearSpec(planes, height, width, rows, columns, mode == "align_corners")
    return ctx.view(ctx.kernel(bilinear(spec), [ctx.view(x, spec.x_shape)], spec.y_shape), ctx.out_shape)


def _between(ctx: Rewrite, x: relax.Expr, axis: int, positions: np.ndarray) -> relax.Expr:
    """The elements around each of the ``positions``, none of which is negative, weighted by nearness."""
    low = np.floor(positions).astype(np.int64)
    weight = (positions - low).astype(np.float32)
    x_low = take_along(ctx, x, axis, low)
    if not weight.any():
        return x_low
    x_high = take_along(ctx, x, axis, np.minimum(low + 1, shape_of(x)[axis] - 1))
    shape = [len(low) if i == axis else 1 for i in range(len(shape_of(x)))]
    lower, upper = (
        ctx.emit(relax.op.multiply(side, relax.const(factor.reshape(shape), "float32")))
        for side, factor in ((x_low, 1 - weight), (x_high, weight))
    )
    return ctx.emit(relax.op.add(lower, upper))


def nearest_index(size: int, count: int, mode: str, rounding: str) -> np.ndarray | None:
    """The input position of each of ``count`` outputs, as ``topi.image.resize2d`` computes it; None for other modes."""
    out = np.arange(count, dtype=np.float64)
    positions = {
        "half_pixel": (out + 0.5) * (size / count) - 0.5,
        "pytorch_half_pixel": (out + 0.5) * (size / count) - 0.5 if count > 1 else out * 0.0,
        "asymmetric": out * (size / count),
        "align_corners": out * ((size - 1) / max(count - 1, 1)),
        "tf_half_pixel_for_nn": (out + 0.5) * (size / count),
    }
    roundings = {
        "round": lambda v: np.rint(v),  # halves to the even one
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "floor": lambda v: np.floor(v + 1e-5),
        "ceil": lambda v: np.ceil(v - 1e-5),
    }
    if mode not in positions or rounding not in roundings:
        return None
    return np.clip(roundings[rounding](positions[mode]), 0, size - 1).astype(np.int64)
