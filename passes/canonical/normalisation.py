"""Softmax and the normalisations over the sample itself: one kernel each, seen as [outer, size, inner]."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from tvm_tinytrain.passes.canonical.registry import Rewrite, rule
from tvm_tinytrain.passes.kernels.normalisation import NormSpec, group_norm
from tvm_tinytrain.passes.kernels.softmax import SoftmaxSpec, softmax
from tvm_tinytrain.passes.rewriting import op_name


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
    """Over the last axes: each row a group, γ and β shared by all rows."""
    shape = ctx.shape()
    axes = sorted(int(a) % len(shape) for a in ctx.attrs.axes)
    if axes != list(range(axes[0], len(shape))):
        return None
    size = math.prod(shape[axes[0] :])
    spec = NormSpec(math.prod(shape) // size, size, 1, True, float(ctx.attrs.epsilon))
    return _normalise(ctx, spec)


@rule("relax.nn.group_norm")
def group_norm_of_channels(ctx: Rewrite) -> relax.Expr | None:
    """Groups of channels of one sample."""
    shape = ctx.shape()
    if int(ctx.attrs.channel_axis) % len(shape) != 1 or shape[0] != 1:
        return None
    groups = int(ctx.attrs.num_groups)
    spec = NormSpec(groups, shape[1] // groups, math.prod(shape[2:]), False, float(ctx.attrs.epsilon))
    return _normalise(ctx, spec)


@rule("relax.nn.instance_norm")
def instance_norm(ctx: Rewrite) -> relax.Expr | None:
    """Each channel of one sample a group."""
    shape = ctx.shape()
    if int(ctx.attrs.channel_axis) % len(shape) != 1 or shape[0] != 1:
        return None
    return _normalise(ctx, NormSpec(shape[1], 1, math.prod(shape[2:]), False, float(ctx.attrs.epsilon)))


def _normalise(ctx: Rewrite, spec: NormSpec) -> relax.Expr:
    gamma = ctx.args[1] if ctx.attrs.scale else relax.const(np.ones(spec.affine_shape, np.float32))
    beta = ctx.args[2] if ctx.attrs.center else relax.const(np.zeros(spec.affine_shape, np.float32))
    args = [ctx.view(ctx.args[0], spec.shape), *(ctx.view(v, spec.affine_shape) for v in (gamma, beta))]
    both = ctx.kernel(group_norm(spec), args, [spec.shape, spec.stats_shape])
    return ctx.view(ctx.emit(relax.TupleGetItem(both, 0)), ctx.out_shape)
