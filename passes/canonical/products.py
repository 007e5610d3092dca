"""Products of activations, and padding in front of a convolution."""

from __future__ import annotations

from dataclasses import replace

from tvm import relax

from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.matmul import matmul, product_spec
from tvm_tinytrain.passes.rewriting import op_name, shape_of

_REPEATS = ("relax.broadcast_to", "relax.reshape", "relax.expand_dims", "relax.tile", "relax.repeat")


def _swaps_last_axes(ctx: Rewrite, expr: relax.Expr) -> relax.Expr | None:
    """The operand of a transposition of the last two axes, else None."""
    call = ctx.definition(expr)
    if call is None or op_name(call) != "relax.permute_dims":
        return None
    rank = len(shape_of(expr))
    axes = list(range(rank))[::-1] if call.attrs.axes is None else [int(a) % rank for a in call.attrs.axes]
    return call.args[0] if rank >= 2 and axes == [*range(rank - 2), rank - 1, rank - 2] else None


def _matrices(ctx: Rewrite, expr: relax.Expr) -> tuple[relax.Expr, bool]:
    """The stored operand and whether it is to be read transposed; views in between are looked through."""
    source = _swaps_last_axes(ctx, expr)
    if source is not None:
        return source, True
    call = ctx.definition(expr)
    if (
        call is not None
        and op_name(call) == "relax.reshape"
        and shape_of(expr)[-2:] == shape_of(call.args[0])[-2:]
    ):
        source = _swaps_last_axes(ctx, call.args[0])
        if source is not None:
            return source, True
    return expr, False


def _weight(ctx: Rewrite, expr: relax.Expr) -> tuple[relax.Expr, bool] | None:
    """The parameter, a matrix, that each matrix of ``expr`` is, and whether transposed; None where it is anything else."""
    transposed = False
    while not (ctx.is_param(expr) and len(shape_of(expr)) == 2):
        call, source = ctx.definition(expr), _swaps_last_axes(ctx, expr)
        if source is not None:
            transposed = not transposed
        elif call is not None and op_name(call) in _REPEATS:
            source = call.args[0] if shape_of(call.args[0])[-2:] == shape_of(expr)[-2:] else None
        if source is None:
            return None
        expr = source
    return expr, transposed


@rule("relax.matmul")
def linear_layer(ctx: Rewrite) -> relax.Expr | None:
    """A weight that is repeated for every sample of a batch, as TVM's front end does for torch's strided inputs, is used as it is.

    ``matmul(x, broadcast_to(permute_dims(W), [n, k, m]))``  →  ``matmul(x, permute_dims(W))``
    """
    left, right = ctx.call.args
    found = _weight(ctx, right) if len(shape_of(right)) > 2 and len(shape_of(left)) > 1 else None
    if found is None:
        return None
    weight, transposed = found
    wanted = (*ctx.out_shape[:-1], shape_of(left)[-1])
    if shape_of(left) != wanted:
        left = ctx.emit(relax.op.broadcast_to(left, wanted))
    if transposed:
        weight = ctx.emit(relax.op.permute_dims(weight, [1, 0]))
    return ctx.emit(relax.op.matmul(left, weight))


@rule("relax.matmul")
def matmul_of_activations(ctx: Rewrite) -> relax.Expr | None:
    """One kernel that reads transposed operands in place; a product with a weight matrix is a layer and stays."""
    left, right = ctx.call.args
    source = _swaps_last_axes(ctx, right)
    if len(shape_of(right)) == 2 and ctx.is_param(right if source is None else source):
        return None
    a_shape, b_shape = shape_of(left), shape_of(right)
    a_shape = (1, *a_shape) if len(a_shape) == 1 else a_shape
    b_shape = (*b_shape, 1) if len(b_shape) == 1 else b_shape
    a, a_transposed = _matrices(ctx, left) if len(shape_of(left)) > 1 else (left, False)
    b, b_transposed = _matrices(ctx, right) if len(shape_of(right)) > 1 else (right, False)
    spec = product_spec(a_shape, b_shape, ctx.out_shape)
    if spec is None:  # broadcast in different axes: written out, as TVM's front end does for torch
        common = ctx.out_shape[:-2]
        a, b = (
            ctx.emit(relax.op.broadcast_to(v, (*common, *s[-2:])))
            for v, s in ((left, a_shape), (right, b_shape))
        )
        spec = product_spec(shape_of(a), shape_of(b), ctx.out_shape)
        assert spec is not None
    else:
        spec = replace(spec, a_transposed=a_transposed, b_transposed=b_transposed)
    c = ctx.kernel(matmul(spec), [ctx.view(a, spec.a_shape), ctx.view(b, spec.b_shape)], spec.c_shape)
    return ctx.view(c, ctx.out_shape)


@rule("relax.nn.conv2d")
def padding_into_convolution(ctx: Rewrite) -> relax.Expr | None:
    """Zero padding of rows and columns in front of a convolution is the convolution's own."""
    pad = ctx.definition(ctx.args[0])
    a = ctx.attrs
    if pad is None or op_name(pad) != "relax.nn.pad" or ctx.reads.get(ctx.args[0]) != 1:
        return None
    width = [int(w) for w in pad.attrs.pad_width]
    zero = str(pad.attrs.pad_mode) == "constant" and float(pad.attrs.pad_value) == 0.0
    layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout) or "NCHW")
    if not zero or any(width[:4]) or layouts != ("NCHW", "OIHW", "NCHW"):
        return None
    top, left, bottom, right = (int(v) for v in a.padding)
    padding = (top + width[4], left + width[6], bottom + width[5], right + width[7])
    strides, dilation = (tuple(int(v) for v in values) for values in (a.strides, a.dilation))
    conv = relax.op.nn.conv2d(pad.args[0], ctx.args[1], strides, padding, dilation, int(a.groups))
    return ctx.emit(conv)
