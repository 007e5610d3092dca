"""Gradient of a bias or of any per-channel vector: dy summed over everything but the channel."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel, remap_all
from tvm_tinytrain.passes.kernels.sinks import HYPER_SIZE, AdamUpdate, Sink, Write


def bias_grad(
    outer: int,
    size: int,
    inner: int,
    sink: Sink | None = None,
    *,
    channels: int | None = None,
    compact_weight: bool = False,
) -> tirx.PrimFunc:
    """∂L/∂b[k] = Σ_{o, i} dy[o, channel, i] for dy seen as [outer, size, inner], handed to ``sink``.

    Arguments: dy[outer, size, inner], (channels[k] int32), then the sink's. ``channels`` is k, None for all.
    """
    sink = sink or Write()
    rows = size if channels is None else channels
    args = [Arg("dy", (outer, size, inner))]
    if channels is not None:
        args.append(Arg("channels", (rows,), "int32"))
    own = len(args)
    args += sink.args((rows,), (rows if compact_weight else size,))

    def body(*bufs: Any) -> None:
        dy, outs = bufs[0], bufs[1] if channels is not None else None
        grad = T.sblock_alloc_buffer((rows,), "float32")
        with T.grid(rows, outer, inner) as (r, o, i), T.sblock("bias_grad"):
            vr, vo, vi = T.axis.remap("SRR", [r, o, i])
            channel = vr if outs is None else outs[vr]
            with T.init():
                T.buffer_store(grad, f32(0.0), [vr])
            T.buffer_store(grad, grad[vr] + dy[vo, channel, vi], [vr])
        with T.serial(rows) as r, T.sblock("sink"):
            vr = T.axis.remap("S", [r])
            sink.emit(bufs[own:], [vr], [vr if outs is None or compact_weight else outs[vr]], grad[vr])

    spec = {"outer": outer, "size": size, "inner": inner}
    return make_kernel(
        "bias_grad",
        spec,
        args,
        body,
        sink=sink.kind,
        update=asdict(sink),
        channels=channels,
        compact_weight=compact_weight,
        macs=0,
    )


def apply_update(
    shape: tuple[int, ...],
    sink: Sink,
    *,
    channels: int | None = None,
    inputs: int | None = None,
    clears: bool = True,
) -> tirx.PrimFunc:
    """Hands a gradient to ``sink`` and, where it ``clears``, sets it to zero in place. Arguments: g (compact), (channels), (inputs),
    the sink's.

    ``shape`` is the full parameter's; the gradient's first two axes are as long as the lists where there are lists.
    """
    compact = (
        tuple(selected or size for selected, size in zip((channels, inputs), shape, strict=False)) + shape[2:]
    )
    args = [Arg("g", compact, role="inout" if clears else "in")]
    if channels is not None:
        args.append(Arg("channels", (channels,), "int32"))
    if inputs is not None:
        args.append(Arg("inputs", (inputs,), "int32"))
    own = len(args)
    args += sink.args(compact, shape)

    def body(*bufs: Any) -> None:
        g = bufs[0]
        lists = list(bufs[1:own])
        outs = lists.pop(0) if channels is not None else None
        ins = lists.pop(0) if inputs is not None else None
        with T.grid(*compact or (1,)) as loops, T.sblock("sink"):  # a number has no axis to loop over
            at = remap_all(loops, len(compact) or 1)[: len(compact)]
            where = list(at)
            if outs is not None:
                where[0] = outs[at[0]]
            if ins is not None:
                where[1] = ins[at[1]]
            sink.emit(bufs[own:], at, where, g[tuple(at)])
            if clears:
                T.buffer_store(g, f32(0.0), at)

    return make_kernel(
        "apply_update", {"shape": list(shape)}, args, body, sink=sink.kind, update=asdict(sink), channels=channels,
        inputs=inputs, macs=0, clears=clears,
    )  # fmt: skip


def advance(sink: AdamUpdate) -> tirx.PrimFunc:
    """Advances Adam's bias corrections in ``hyper`` by one step: 1 − β^(t+1) = β (1 − β^t) + (1 − β)."""

    def body(hyper: Any) -> None:
        with T.serial(1) as i, T.sblock("advance"):  # a block below the root, as schedules expect
            vi = T.axis.remap("S", [i])
            T.buffer_store(hyper, hyper[vi + 1] * f32(sink.beta1) + f32(1.0 - sink.beta1), [vi + 1])
            T.buffer_store(hyper, hyper[vi + 2] * f32(sink.beta2) + f32(1.0 - sink.beta2), [vi + 2])

    return make_kernel("advance", {}, [Arg("hyper", (HYPER_SIZE,), role="inout")], body, macs=0)
