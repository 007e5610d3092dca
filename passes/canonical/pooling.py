"""Pooling: one spelling for global, adaptive and one-dimensional pools, of one sample."""

from __future__ import annotations

from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.rewriting import op_name


@rule(
    "relax.nn.max_pool1d", "relax.nn.avg_pool1d", "relax.nn.adaptive_avg_pool1d",
    "relax.nn.max_pool2d", "relax.nn.avg_pool2d", "relax.nn.adaptive_avg_pool2d",
)  # fmt: skip
def other_layouts(ctx: Rewrite) -> relax.Expr | None:
    """Channels that stand last are refused."""
    wanted = "NCHW" if len(ctx.shape()) == 4 else "NCW"
    layouts = [str(ctx.attrs.layout), str(ctx.attrs.out_layout) or wanted]
    if layouts != [wanted, wanted]:
        raise UnsupportedOperatorError(
            "canonicalize",
            op_name(ctx.call),
            f"layouts {tuple(layouts)}",
            f"{wanted} data",
            f"convert the network to {wanted}",
        )
    return None


@rule("relax.nn.adaptive_avg_pool2d")
def adaptive_pool(ctx: Rewrite) -> relax.Expr | None:
    """A mean where it pools everything, an average pool where the output divides the input."""
    return ctx.view(_adaptive(ctx, _planes(ctx), ctx.out_shape[2:]), ctx.out_shape)


@rule("relax.nn.adaptive_avg_pool1d")
def adaptive_pool_1d(ctx: Rewrite) -> relax.Expr | None:
    """As two-dimensional pooling of rows."""
    return ctx.view(_adaptive(ctx, _planes(ctx), (1, ctx.out_shape[2])), ctx.out_shape)


def _planes(ctx: Rewrite) -> relax.Expr:
    """The operand as one sample: the planes of a batch, which pools treat alike, stand side by side, rows are planes of height 1."""
    batch, channels, *extents = ctx.shape()
    return ctx.view(ctx.args[0], (1, batch * channels, *[1] * (2 - len(extents)), *extents))


def _adaptive(ctx: Rewrite, planes: relax.Expr, out: tuple[int, ...]) -> relax.Expr:
    height, width = [1] * (4 - len(ctx.shape())) + list(ctx.shape()[2:])
    rows, columns = out
    if (rows, columns) == (1, 1):
        return ctx.emit(relax.op.mean(planes, [2, 3], keepdims=True))
    if height % rows or width % columns:
        return ctx.emit(relax.op.nn.adaptive_avg_pool2d(planes, (rows, columns)))
    window = (height // rows, width // columns)
    return ctx.emit(relax.op.nn.avg_pool2d(planes, window, window))


@rule("relax.nn.max_pool1d", "relax.nn.avg_pool1d")
def pool_1d(ctx: Rewrite) -> relax.Expr | None:
    """As two-dimensional pooling of rows."""
    a = ctx.attrs
    size, stride, dilation = ((1, int(v[0])) for v in (a.pool_size, a.strides, a.dilation))
    padding = (0, int(a.padding[0]), 0, int(a.padding[1]))
    pool = relax.op.nn.max_pool2d if op_name(ctx.call) == "relax.nn.max_pool1d" else relax.op.nn.avg_pool2d
    pooled = pool(_planes(ctx), size, stride, padding, dilation, bool(a.ceil_mode), bool(a.count_include_pad))
    return ctx.view(ctx.emit(pooled), ctx.out_shape)


@rule("relax.nn.avg_pool2d")
def global_pool(ctx: Rewrite) -> relax.Expr | None:
    """A window that covers everything, once, is a mean."""
    window = tuple(int(v) for v in ctx.attrs.pool_size)
    if ctx.out_shape[2:] != (1, 1) or window != ctx.shape()[2:] or any(int(v) for v in ctx.attrs.padding):
        return None
    return ctx.emit(relax.op.mean(ctx.args[0], [2, 3], keepdims=True))


@rule("relax.nn.max_pool2d", "relax.nn.avg_pool2d")
def pool_of_a_batch(ctx: Rewrite) -> relax.Expr | None:
    """As a pool of one sample with as many more channels."""
    if ctx.shape()[0] == 1:
        return None
    return ctx.view(ctx.emit(relax.Call(ctx.call.op, [_planes(ctx)], ctx.attrs)), ctx.out_shape)
