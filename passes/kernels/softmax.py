"""Softmax and log-softmax along one axis, and their gradients from the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel


@dataclass(frozen=True)
class SoftmaxSpec:
    """x seen as [outer, size, inner], normalised over ``size``; ``log`` asks for the logarithm."""

    outer: int
    size: int
    inner: int
    log: bool = False

    @staticmethod
    def from_dict(values: dict[str, Any]) -> SoftmaxSpec:
        """Inverse of ``dataclasses.asdict``; other keys are ignored."""
        return SoftmaxSpec(*(values[k] for k in ("outer", "size", "inner", "log")))

    @property
    def shape(self) -> tuple[int, int, int]:
        """[outer, size, inner]."""
        return (self.outer, self.size, self.inner)


def softmax(spec: SoftmaxSpec) -> tirx.PrimFunc:
    """y = exp(x − max) / Σ exp(x − max), or its logarithm. Arguments: x, y, both [outer, size, inner]."""

    def body(x: Any, y: Any) -> None:
        peak = T.sblock_alloc_buffer((spec.outer, spec.inner), "float32")
        total = T.sblock_alloc_buffer((spec.outer, spec.inner), "float32")
        with T.grid(spec.outer, spec.inner) as (o, i):
            with T.serial(spec.size) as k, T.sblock("peak"):
                vo, vi, vk = T.axis.remap("SSR", [o, i, k])
                with T.init():
                    T.buffer_store(peak, f32(-3.4028234663852886e38), [vo, vi])
                T.buffer_store(peak, tirx.max(peak[vo, vi], x[vo, vk, vi]), [vo, vi])
            with T.serial(spec.size) as k, T.sblock("shift"):
                vo, vi, vk = T.axis.remap("SSS", [o, i, k])
                shifted = x[vo, vk, vi] - peak[vo, vi]
                T.buffer_store(y, shifted if spec.log else tirx.exp(shifted), [vo, vk, vi])
            with T.serial(spec.size) as k, T.sblock("total"):
                vo, vi, vk = T.axis.remap("SSR", [o, i, k])
                with T.init():
                    T.buffer_store(total, f32(0.0), [vo, vi])
                term = tirx.exp(y[vo, vk, vi]) if spec.log else y[vo, vk, vi]
                T.buffer_store(total, total[vo, vi] + term, [vo, vi])
            with T.serial(spec.size) as k, T.sblock("normalise"):
                vo, vi, vk = T.axis.remap("SSS", [o, i, k])
                value = y[vo, vk, vi]
                result = value - tirx.log(total[vo, vi]) if spec.log else value / total[vo, vi]
                T.buffer_store(y, result, [vo, vk, vi])

    args = [Arg("x", spec.shape), Arg("y", spec.shape, role="out")]
    return make_kernel("softmax", spec, args, body, macs=0)


def softmax_grad(spec: SoftmaxSpec) -> tirx.PrimFunc:
    """dx = y · (dy − Σ dy·y); of the logarithm: dx = dy − eʸ · Σ dy. Arguments: y, dy, dx, all [outer, size, inner]."""

    def body(y: Any, dy: Any, dx: Any) -> None:
        total = T.sblock_alloc_buffer((spec.outer, spec.inner), "float32")
        with T.grid(spec.outer, spec.inner) as (o, i):
            with T.serial(spec.size) as k, T.sblock("total"):
                vo, vi, vk = T.axis.remap("SSR", [o, i, k])
                with T.init():
                    T.buffer_store(total, f32(0.0), [vo, vi])
                term = dy[vo, vk, vi] if spec.log else dy[vo, vk, vi] * y[vo, vk, vi]
                T.buffer_store(total, total[vo, vi] + term, [vo, vi])
            with T.serial(spec.size) as k, T.sblock("softmax_grad"):
                vo, vi, vk = T.axis.remap("SSS", [o, i, k])
                here, grad = y[vo, vk, vi], dy[vo, vk, vi]
                value = grad - tirx.exp(here) * total[vo, vi] if spec.log else here * (grad - total[vo, vi])
                T.buffer_store(dx, value, [vo, vk, vi])

    args = [Arg("y", spec.shape), Arg("dy", spec.shape), Arg("dx", spec.shape, role="out")]
    return make_kernel("softmax_grad", spec, args, body, macs=0)
