"""Fully connected layers: forward and gradients, for x[rows, in_features]."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel
from tvm_tinytrain.passes.kernels.conv2d import clamp
from tvm_tinytrain.passes.kernels.sinks import Sink, Write


@dataclass(frozen=True)
class LinearSpec:
    """y[rows, out_features] = x[rows, in_features] · weightᵀ, weight[out_features, in_features]."""

    rows: int
    in_features: int
    out_features: int

    @staticmethod
    def from_dict(values: dict[str, Any]) -> LinearSpec:
        """Inverse of ``dataclasses.asdict``; other keys are ignored."""
        return LinearSpec(values["rows"], values["in_features"], values["out_features"])

    @property
    def weight_shape(self) -> tuple[int, int]:
        """[out_features, in_features]."""
        return (self.out_features, self.in_features)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass."""
        return self.rows * self.in_features * self.out_features


def linear(
    spec: LinearSpec, *, bias: bool = False, low: float | None = None, high: float | None = None
) -> tirx.PrimFunc:
    """y = clamp(x · wᵀ + b, low, high). Arguments: x, w, (b[out_features] if ``bias``), y."""
    shape = (spec.rows, spec.out_features)
    args = [Arg("x", (spec.rows, spec.in_features)), Arg("w", spec.weight_shape)]
    if bias:
        args.append(Arg("b", (spec.out_features,)))
    args.append(Arg("y", shape, role="out"))

    def body(x: Any, w: Any, *rest: Any) -> None:
        y = rest[-1]
        acc = T.sblock_alloc_buffer(shape, "float32")
        with T.grid(*shape, spec.in_features) as (r, o, k), T.sblock("linear"):
            vr, vo, vk = T.axis.remap("SSR", [r, o, k])
            with T.init():
                T.buffer_store(acc, f32(0.0), [vr, vo])
            T.buffer_store(acc, acc[vr, vo] + x[vr, vk] * w[vo, vk], [vr, vo])
        with T.grid(*shape) as (r, o), T.sblock("epilogue"):
            vr, vo = T.axis.remap("SS", [r, o])
            value = acc[vr, vo] + rest[0][vo] if bias else acc[vr, vo]
            T.buffer_store(y, clamp(value, low, high), [vr, vo])

    return make_kernel("linear", spec, args, body, bias=bias, low=low, high=high, macs=spec.macs)


def linear_input_grad(spec: LinearSpec) -> tirx.PrimFunc:
    """dx = dy · w. Arguments: dy[rows, out], w[out, in], dx[rows, in]."""
    shape = (spec.rows, spec.in_features)
    args = [
        Arg("dy", (spec.rows, spec.out_features)),
        Arg("w", spec.weight_shape),
        Arg("dx", shape, role="out"),
    ]

    def body(dy: Any, w: Any, dx: Any) -> None:
        acc = T.sblock_alloc_buffer(shape, "float32")
        with T.grid(*shape, spec.out_features) as (r, k, o), T.sblock("linear_input_grad"):
            vr, vk, vo = T.axis.remap("SSR", [r, k, o])
            with T.init():
                T.buffer_store(acc, f32(0.0), [vr, vk])
            T.buffer_store(acc, acc[vr, vk] + dy[vr, vo] * w[vo, vk], [vr, vk])
        with T.grid(*shape) as (r, k), T.sblock("epilogue"):
            at = T.axis.remap("SS", [r, k])
            T.buffer_store(dx, acc[tuple(at)], list(at))

    return make_kernel("linear_input_grad", spec, args, body, macs=spec.macs)


def linear_weight_grad(
    spec: LinearSpec,
    sink: Sink | None = None,
    *,
    channels: int | None = None,
    inputs: int | None = None,
    compact_weight: bool = False,
) -> tirx.PrimFunc:
    """∂L/∂w[k, m] = dyᵀ · x for the selected output (and input) channels, handed to ``sink``.

    Arguments: x[rows, in], dy[rows, out], (channels[k] int32), (inputs[m] int32), then the sink's.
    """
    sink = sink or Write()
    compact = (
        spec.out_features if channels is None else channels,
        spec.in_features if inputs is None else inputs,
    )
    args = [Arg("x", (spec.rows, spec.in_features)), Arg("dy", (spec.rows, spec.out_features))]
    if channels is not None:
        args.append(Arg("channels", (channels,), "int32"))
    if inputs is not None:
        args.append(Arg("inputs", (inputs,), "int32"))
    own = len(args)
    args += sink.args(compact, compact if compact_weight else spec.weight_shape)

    def body(*bufs: Any) -> None:
        x, dy = bufs[0], bufs[1]
        lists = list(bufs[2:own])
        outs = lists.pop(0) if channels is not None else None
        ins = lists.pop(0) if inputs is not None else None
        grad = T.sblock_alloc_buffer(compact, "float32")
        with T.grid(*compact, spec.rows) as (o, k, r), T.sblock("linear_weight_grad"):
            vo, vk, vr = T.axis.remap("SSR", [o, k, r])
            out = vo if outs is None else outs[vo]
            inner = vk if ins is None else ins[vk]
            with T.init():
                T.buffer_store(grad, f32(0.0), [vo, vk])
            T.buffer_store(grad, grad[vo, vk] + dy[vr, out] * x[vr, inner], [vo, vk])
        with T.grid(*compact) as (o, k), T.sblock("sink"):
            at = T.axis.remap("SS", [o, k])
            out = at[0] if outs is None or compact_weight else outs[at[0]]
            inner = at[1] if ins is None or compact_weight else ins[at[1]]
            sink.emit(bufs[own:], list(at), [out, inner], grad[tuple(at)])

    return make_kernel(
        "linear_weight_grad", spec, args, body, sink=sink.kind, update=asdict(sink), channels=channels, inputs=inputs,
        compact_weight=compact_weight, macs=compact[0] * compact[1] * spec.rows,
    )  # fmt: skip
