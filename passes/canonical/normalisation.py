"""Softmax and the normalisations over the sample itself: one kernel each, seen as [outer, size, inner]."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.passes.canonical.activations import emit_activation
from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.activations import Activation
from tvm_tinytrain.passes.kernels.normalisation import NormSpec, group_norm
from tvm_tinytrain.passes.kernels.softmax import SoftmaxSpec, softmax
from tvm_tinytrain.passes.rewriting import op_name, shape_of


@rule("relax.nn.softmax", "relax.nn.log_softmax")
def softmax_along_axis(ctx: Rewrite) -> relax.Expr | None:
    """Along any axis, seen as the middle one of three."""
    shape = ctx.shape()
    axis = int(ctx.attrs.axis) % len(shape)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    spec = SoftmaxSpec(outer, shape[axis], inner, op_name(ctx.call) == "relax.nn.log_softmax")
    y = ctx.kernel(softmax(spec), [ctx.view(ctx.args[0], spec.shape)], spec.shape)
    return ctx.view(y, shape)


@rule("relax.nn.layer_norm")
def layer_norm(ctx: Rewrite) -> relax.Expr | None:
    """Over the last axes: each row a group, γ and β shared by all rows. Other axes are brought to the end."""
    shape = ctx.shape()
    axes = sorted(int(a) % len(shape) for a in ctx.attrs.axes)
    size = math.prod(shape[a] for a in axes)
    spec = NormSpec(math.prod(shape) // size, size, 1, True, float(ctx.attrs.epsilon))
    order = [i for i in range(len(shape)) if i not in axes] + axes
    if order == sorted(order):
        return _normalise(ctx, spec)
    moved = ctx.emit(relax.op.permute_dims(ctx.args[0], order))
    y = _normalise(ctx, spec, moved)
    return ctx.emit(relax.op.permute_dims(y, [order.index(i) for i in range(len(shape))]))


@rule("relax.nn.rms_norm")
def rms_norm(ctx: Rewrite) -> relax.Expr | None:
    """x / √(mean(x²) + ε), times the weight: in parts, as PyTorch's exporter writes it."""
    x, weight = ctx.args
    shape, axes = ctx.shape(), sorted(int(a) % len(ctx.shape()) for a in ctx.attrs.axes)
    mean = ctx.emit(relax.op.mean(ctx.emit(relax.op.multiply(x, x)), axes, keepdims=True))
    shifted = ctx.emit(relax.op.add(mean, relax.const(float(ctx.attrs.epsilon), "float32")))
    normed = ctx.emit(relax.op.multiply(x, emit_activation(ctx, shifted, Activation("rsqrt"))))
    column = [d if i in axes else 1 for i, d in enumerate(shape)]
    return ctx.emit(relax.op.multiply(normed, ctx.view(weight, column)))


@rule("relax.nn.group_norm")
def group_norm_of_channels(ctx: Rewrite) -> relax.Expr | None:
    """Groups of channels of one sample."""
    return _by_channel(ctx, int(ctx.attrs.num_groups))


@rule("relax.nn.instance_norm")
def instance_norm(ctx: Rewrite) -> relax.Expr | None:
    """Each channel of one sample a group."""
    return _by_channel(ctx, ctx.shape()[1])


def _by_channel(ctx: Rewrite, groups: int) -> relax.Expr:
    """Groups of channels, which stand in axis 1, with all pixels; of a batch the groups of all samples, γ and β by themselves."""
    a, shape = ctx.attrs, ctx.shape()
    rank, batch, channels = len(shape), shape[0], shape[1]
    axes = sorted(int(v) % rank for v in a.axes)
    pixels = [i for i in range(2, rank) if shape[i] > 1]
    if int(a.channel_axis) % rank != 1 or [i for i in axes if shape[i] > 1] != pixels:
        raise UnsupportedOperatorError(
            "canonicalize",
            op_name(ctx.call),
            f"channel axis {int(a.channel_axis)}, axes {axes}",
            f"channel axis 1, axes {list(range(2, rank))}",
            "move the channels to axis 1, or write a mean, a variance and a product",
        )
    spec = NormSpec(batch * groups, channels // groups, math.prod(shape[2:]), False, float(a.epsilon))
    if batch == 1:
        return _normalise(ctx, spec)
    y, column = _normalise(ctx, spec, ctx.args[0], affine=False), (1, channels, *[1] * (rank - 2))
    if a.scale:
        y = ctx.emit(relax.op.multiply(y, ctx.view(ctx.args[1], column)))
    return ctx.emit(relax.op.add(y, ctx.view(ctx.args[2], column))) if a.center else y


def _normalise(ctx: Rewrite, spec: NormSpec, x: relax.Expr | None = None, affine: bool = True) -> relax.Expr:
    x = ctx.args[0] if x is None else x
    ones, zeros = (relax.const(np.full(spec.affine_shape, v, np.float32)) for v in (1.0, 0.0))
    gamma = ctx.args[1] if ctx.attrs.scale and affine else ones
    beta = ctx.args[2] if ctx.attrs.center and affine else zeros
    args = [ctx.view(x, spec.shape), *(ctx.view(v, spec.affine_shape) for v in (gamma, beta))]
    both = ctx.kernel(group_norm(spec), args, [spec.shape, spec.stats_shape])
    return ctx.view(ctx.emit(relax.TupleGetItem(both, 0)), shape_of(x))
