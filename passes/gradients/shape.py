"""Gradients of operators that only move or repeat elements."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.gradients.arithmetic import unbroadcast
from tvm_tinytrain.passes.gradients.registry import Adjoint, GradientContext, gradient
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.kernels.resize import (
    BilinearSpec,
    UpsampleSpec,
    bilinear_grad,
    upsample_grad,
)
from tvm_tinytrain.passes.kernels.slicing import GatherSpec, gather_grad, slice_grad
from tvm_tinytrain.passes.rewriting import shape_of, slice_range


@gradient("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
def reshape_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The adjoint in the operand's shape: a view, nothing moves."""
    back: list[Adjoint] = [ctx.emit(relax.op.reshape(ctx.dy, shape_of(ctx.args[0])))]
    return back + [None] * (len(ctx.args) - 1)


@gradient("relax.permute_dims")
def permute_dims_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The inverse permutation."""
    rank = len(shape_of(ctx.args[0]))
    axes = range(rank)[::-1] if ctx.attrs.axes is None else [int(a) % rank for a in ctx.attrs.axes]
    inverse = sorted(range(rank), key=list(axes).__getitem__)
    return [ctx.emit(relax.op.permute_dims(ctx.dy, inverse))]


@gradient("relax.broadcast_to")
def broadcast_to_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The sum over the broadcast axes."""
    return [unbroadcast(ctx, ctx.dy, ctx.args[0]), None]


@gradient("relax.tile")
def tile_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The sum over the copies: dy seen as [copies, length] per axis."""
    shape, out = shape_of(ctx.args[0]), shape_of(ctx.out)
    padded = (1,) * (len(out) - len(shape)) + shape
    split = [d for total, size in zip(out, padded, strict=True) for d in (total // size, size)]
    view = ctx.emit(relax.op.reshape(ctx.dy, split))
    summed = ctx.emit(relax.op.sum(view, list(range(0, len(split), 2))))
    return [ctx.emit(relax.op.reshape(summed, shape)) if shape_of(summed) != shape else summed]


@gradient("relax.concat")
def concat_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Each operand's stretch of dy."""
    axis = int(ctx.attrs.axis) % len(shape_of(ctx.out))
    result: list[Adjoint] = []
    start = 0
    for arg, needed in zip(ctx.args, ctx.needs, strict=True):
        stop = start + shape_of(arg)[axis]
        result.append(ctx.emit(relax.op.strided_slice(ctx.dy, [axis], [start], [stop])) if needed else None)
        start = stop
    return result


@gradient("relax.split")
def split_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The fields' adjoints side by side, with zeros for the fields that nothing reads."""
    shape = shape_of(ctx.args[0])
    axis = int(ctx.attrs.axis) % len(shape)
    shapes = [shape_of_type(t) for t in ctx.call.ty.fields]
    read = [i for i, grad in enumerate(ctx.dy) if grad is not None]
    if len(read) == 1:
        begin = [0] * len(shape)
        begin[axis] = sum(s[axis] for s in shapes[: read[0]])
        kernel = slice_grad(shape, tuple(begin), (1,) * len(shape), shapes[read[0]])
        return [ctx.r.kernel(kernel, [ctx.dy[read[0]]], shape)]
    parts = [
        ctx.emit(relax.op.zeros(s, "float32")) if grad is None else grad
        for s, grad in zip(shapes, ctx.dy, strict=True)
    ]
    return [ctx.emit(relax.op.concat(parts, axis))]


def shape_of_type(ty: relax.TensorType) -> tuple[int, ...]:
    """The static shape of a tensor type."""
    return tuple(int(d) for d in ty.shape)


@gradient("relax.strided_slice")
def strided_slice_gradient(ctx: GradientContext) -> list[Adjoint]:
    """dy at the places that were taken, zero elsewhere."""
    shape, taken = shape_of(ctx.args[0]), shape_of(ctx.out)
    begin, strides = slice_range(ctx.call)
    if min(strides, default=1) < 1:
        raise UnsupportedOperatorError(
            "derive backward", "relax.strided_slice", f"steps {strides}", "steps above 0",
            "run Canonicalize first: it makes tables of slices that are read backwards",
        )  # fmt: skip
    kernel = slice_grad(shape, begin, strides, taken)
    return [ctx.r.kernel(kernel, [ctx.dy], shape), *[None] * (len(ctx.args) - 1)]


@gradient("relax.nn.pad")
def pad_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The inner part of dy, which is all of it only where the border is constant."""
    if str(ctx.attrs.pad_mode) != "constant":
        raise UnsupportedOperatorError(
            "derive backward", "relax.nn.pad", f"mode {ctx.attrs.pad_mode}", "mode constant",
            "run Canonicalize first: it makes tables of the other modes",
        )  # fmt: skip
    shape = shape_of(ctx.args[0])
    before = [int(w) for w in list(ctx.attrs.pad_width)[::2]]
    after = [b + d for b, d in zip(before, shape, strict=True)]
    axes = [
        i for i, (b, e) in enumerate(zip(before, after, strict=True)) if (b, e) != (0, shape_of(ctx.out)[i])
    ]
    cut = relax.op.strided_slice(ctx.dy, axes, [before[i] for i in axes], [after[i] for i in axes])
    return [ctx.emit(cut)] + [None] * (len(ctx.args) - 1)


@gradient("kernel.gather")
def gather_gradient(ctx: GradientContext) -> list[Adjoint]:
    """Each dy is added where its element came from; the index has no gradient."""
    spec = GatherSpec.from_dict(kernel_spec(ctx.kernel))
    return [ctx.r.kernel(gather_grad(spec), [ctx.dy, ctx.args[1]], spec.x_shape), None]


@gradient("kernel.upsample")
def upsample_gradient(ctx: GradientContext) -> list[Adjoint]:
    """The sum over each block of copies."""
    spec = UpsampleSpec.from_dict(kernel_spec(ctx.kernel))
    return [ctx.r.kernel(upsample_grad(spec), [ctx.dy], spec.x_shape)]


@gradient("kernel.bilinear")
def bilinear_gradient(ctx: GradientContext) -> list[Adjoint]:
    """To the four elements that each output read."""
    spec = BilinearSpec.from_dict(kernel_spec(ctx.kernel))
    return [ctx.r.kernel(bilinear_grad(spec), [ctx.dy], spec.x_shape)]
