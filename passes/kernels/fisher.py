"""The reduction of TinyTrain's Fisher potential (Kwon et al., ICML 2024, §2.2, equation 3)."""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel


def fisher_reduce(outer: int, channels: int, inner: int) -> Any:
    """delta[c] += (Σ_{o, i} a[o, c, i] · g[o, c, i])² for an activation and its adjoint seen as [outer, channels, inner].

    Called once per sample; the factor 1/(2N) of the paper is common to all channels and is left out. Arguments: a, g, delta[channels]
    (in place), all float32.
    """
    shape = (outer, channels, inner)

    def body(a: Any, g: Any, delta: Any) -> None:
        total = T.sblock_alloc_buffer((channels,), "float32")
        with T.grid(channels, outer, inner) as (c, o, i), T.sblock("fisher_reduce"):
            vc, vo, vi = T.axis.remap("SRR", [c, o, i])
            with T.init():
                T.buffer_store(total, f32(0.0), [vc])
            T.buffer_store(total, total[vc] + a[vo, vc, vi] * g[vo, vc, vi], [vc])
        with T.serial(channels) as c, T.sblock("sink"):
            vc = T.axis.remap("S", [c])
            T.buffer_store(delta, delta[vc] + total[vc] * total[vc], [vc])

    args = [Arg("a", shape), Arg("g", shape), Arg("delta", (channels,), role="inout")]
    spec = {"outer": outer, "channels": channels, "inner": inner}
    return make_kernel("fisher_reduce", spec, args, body, macs=0)
