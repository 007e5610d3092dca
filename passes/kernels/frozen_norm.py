"""Batch norm with frozen statistics where no convolution can take it in: γ and β stay trainable."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel


def frozen_norm(channels: int, inner: int) -> tirx.PrimFunc:
    """y = (x · rstd + shift) · γ + β with rstd = 1/σ and shift = −μ/σ.

    Arguments: x[channels, inner], rstd, shift, γ, β (each [channels]), y[channels, inner].
    """

    def body(x: Any, rstd: Any, shift: Any, gamma: Any, beta: Any, y: Any) -> None:
        with T.grid(channels, inner) as (c, i), T.sblock("frozen_norm"):
            vc, vi = T.axis.remap("SS", [c, i])
            T.buffer_store(y, (x[vc, vi] * rstd[vc] + shift[vc]) * gamma[vc] + beta[vc], [vc, vi])

    vectors = [Arg(n, (channels,)) for n in ("rstd", "shift", "gamma", "beta")]
    args = [Arg("x", (channels, inner)), *vectors, Arg("y", (channels, inner), role="out")]
    return make_kernel("frozen_norm", {"channels": channels, "inner": inner}, args, body, macs=0)


def frozen_norm_input_grad(channels: int, inner: int) -> tirx.PrimFunc:
    """dx = dy · γ · rstd. Arguments: rstd, γ (each [channels]), dy, dx (both [channels, inner])."""

    def body(rstd: Any, gamma: Any, dy: Any, dx: Any) -> None:
        with T.grid(channels, inner) as (c, i), T.sblock("frozen_norm_input_grad"):
            vc, vi = T.axis.remap("SS", [c, i])
            T.buffer_store(dx, dy[vc, vi] * (gamma[vc] * rstd[vc]), [vc, vi])

    vectors = [Arg(n, (channels,)) for n in ("rstd", "gamma")]
    args = [*vectors, Arg("dy", (channels, inner)), Arg("dx", (channels, inner), role="out")]
    return make_kernel("frozen_norm_input_grad", {"channels": channels, "inner": inner}, args, body, macs=0)


def frozen_norm_scale_grad(channels: int, inner: int) -> tirx.PrimFunc:
    """dγ = Σ dy · (x · rstd + shift). Arguments: x[channels, inner], rstd, shift, dy[channels, inner], dγ[channels]."""

    def body(x: Any, rstd: Any, shift: Any, dy: Any, grad: Any) -> None:
        with T.grid(channels, inner) as (c, i), T.sblock("frozen_norm_scale_grad"):
            vc, vi = T.axis.remap("SR", [c, i])
            with T.init():
                T.buffer_store(grad, f32(0.0), [vc])
            T.buffer_store(grad, grad[vc] + dy[vc, vi] * (x[vc, vi] * rstd[vc] + shift[vc]), [vc])

    vectors = [Arg(n, (channels,)) for n in ("rstd", "shift")]
    args = [
        Arg("x", (channels, inner)), *vectors, Arg("dy", (channels, inner)), Arg("grad", (channels,), role="out")
    ]  # fmt: skip
    return make_kernel("frozen_norm_scale_grad", {"channels": channels, "inner": inner}, args, body, macs=0)
