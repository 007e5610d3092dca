"""Operators that do nothing in inference, and other spellings of reshapes and concatenations."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.rewriting import dtype_of, op_name, shape_of


@rule(
    "relax.reshape", "relax.broadcast_to", "relax.tile", "relax.squeeze", "relax.flatten", "relax.expand_dims"
)
def same_shape(ctx: Rewrite) -> relax.Expr | None:
    """A change to the shape that it already has."""
    return ctx.args[0] if ctx.shape() == ctx.out_shape else None


@rule("relax.reshape", "relax.squeeze", "relax.flatten", "relax.nn.batch_flatten", "relax.expand_dims")
def reshape_of_reshape(ctx: Rewrite) -> relax.Expr | None:
    """One view instead of two; parameters keep theirs, by which layers find their bias."""
    inner = ctx.definition(ctx.args[0])
    if inner is not None and op_name(inner) == "relax.reshape" and not ctx.is_param(inner.args[0]):
        return ctx.view(inner.args[0], ctx.out_shape)
    if op_name(ctx.call) == "relax.reshape":
        return None
    return ctx.view(ctx.args[0], ctx.out_shape)


@rule("relax.permute_dims")
def permutation(ctx: Rewrite) -> relax.Expr | None:
    """One permutation instead of two; one that moves no axis longer than one is a view, one that moves none is nothing."""
    source, axes = ctx.args[0], permuted_axes(ctx.call)
    inner = ctx.definition(source)
    if inner is not None and op_name(inner) == "relax.permute_dims":
        before = permuted_axes(inner)
        source, axes = inner.args[0], [before[a] for a in axes]
    shape = shape_of(source)
    if axes == sorted(axes):
        return source
    moved = [a for a in axes if shape[a] != 1]
    if moved == sorted(moved) and not ctx.is_param(source):  # of a weight it is how a layer is recognised
        return ctx.view(source, ctx.out_shape)
    return None if source is ctx.args[0] else ctx.emit(relax.op.permute_dims(source, axes))


def permuted_axes(call: relax.Call) -> list[int]:
    """The operand's axes in the order of the result of a ``permute_dims``."""
    rank = len(shape_of(call.args[0]))
    return list(range(rank))[::-1] if call.attrs.axes is None else [int(a) % rank for a in call.attrs.axes]


@rule("relax.astype")
def same_dtype(ctx: Rewrite) -> relax.Expr | None:
    """A cast to the element type that it already has."""
    return ctx.args[0] if dtype_of(ctx.args[0]) == dtype_of(ctx.binding.var) else None


@rule("relax.nn.dropout")
def dropout(ctx: Rewrite) -> relax.Expr | None:
    """The identity in inference; the mask, which nothing reads, stands in for itself."""
    return relax.Tuple([ctx.args[0], ctx.args[0]])


@rule("relax.stack")
def stack(ctx: Rewrite) -> relax.Expr | None:
    """A concatenation along a new axis."""
    axis = (int(ctx.attrs.axis) if ctx.attrs.axis is not None else 0) % len(ctx.out_shape)
    shape = [1 if i == axis else d for i, d in enumerate(ctx.out_shape)]
    return ctx.emit(relax.op.concat([ctx.view(a, shape) for a in ctx.args], axis))


@rule("relax.concat")
def concat_of_one(ctx: Rewrite) -> relax.Expr | None:
    """A concatenation of a single tensor."""
    return ctx.args[0] if len(ctx.args) == 1 else None


@rule("relax.nn.pixel_shuffle")
def pixel_shuffle(ctx: Rewrite) -> relax.Expr | None:
    """Depth to space as a permutation."""
    batch, channels, height, width = ctx.shape()
    factor = int(ctx.attrs.upscale_factor)
    planes = channels // factor**2
    view = ctx.view(ctx.args[0], (batch, planes, factor, factor, height, width))
    return ctx.view(ctx.emit(relax.op.permute_dims(view, [0, 1, 4, 2, 5, 3])), ctx.out_shape)


@rule("relax.nn.pad")
def no_padding(ctx: Rewrite) -> relax.Expr | None:
    """Padding by nothing."""
    return None if any(int(w) for w in ctx.attrs.pad_width) else ctx.args[0]


@rule("relax.nn.pad")
def cropping(ctx: Rewrite) -> relax.Expr | None:
    """Padding by less than nothing is a slice; the other sides are padded behind it."""
    a, shape = ctx.attrs, shape_of(ctx.args[0])
    widths = [int(w) for w in a.pad_width]
    if min(widths, default=0) >= 0:
        return None
    rest = [max(w, 0) for w in widths]
    if str(a.pad_mode) != "constant" and any(rest):
        hint = "crop by a slice, then pad"
        found = f"mode {a.pad_mode}, widths {widths}"
        raise UnsupportedOperatorError("canonicalize", "relax.nn.pad", found, "widths from 0", hint)
    first = [max(-w, 0) for w in widths[::2]]
    end = [d - max(-w, 0) for d, w in zip(shape, widths[1::2], strict=True)]
    axes = [i for i, d in enumerate(shape) if (first[i], end[i]) != (0, d)]
    cut = ctx.emit(
        relax.op.strided_slice(ctx.args[0], axes, [first[i] for i in axes], [end[i] for i in axes])
    )
    return ctx.emit(relax.op.nn.pad(cut, rest, "constant", a.pad_value)) if any(rest) else cut
