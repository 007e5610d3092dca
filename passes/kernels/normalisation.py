"""Group normalisation (layer and instance normalisation are special cases): forward and gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel


@dataclass(frozen=True)
class NormSpec:
    """x seen as [groups, size, inner]; each group is normalised by its own mean and variance over size × inner.

    γ and β have shape [size] and serve all groups where ``shared`` is true (layer norm), else [groups · size] (group norm:
    groups of ``size`` channels with ``inner`` pixels).
    """

    groups: int
    size: int
    inner: int
    shared: bool
    epsilon: float

    @staticmethod
    def from_dict(values: dict[str, Any]) -> NormSpec:
        """Inverse of ``dataclasses.asdict``; other keys are ignored."""
        return NormSpec(*(values[k] for k in ("groups", "size", "inner", "shared", "epsilon")))

    @property
    def shape(self) -> tuple[int, int, int]:
        """[groups, size, inner]."""
        return (self.groups, self.size, self.inner)

    @property
    def stats_shape(self) -> tuple[int, int]:
        """Mean and 1/σ of each group: [groups, 2]."""
        return (self.groups, 2)

    @property
    def affine_shape(self) -> tuple[int]:
        """Shape of γ and β."""
        return (self.size if self.shared else self.groups * self.size,)

    @property
    def count(self) -> int:
        """Elements of one group."""
        return self.size * self.inner

    def affine_index(self, group: Any, row: Any) -> Any:
        """Index into γ and β."""
        return row if self.shared else group * self.size + row


def group_norm(spec: NormSpec) -> tirx.PrimFunc:
    """y = (x − μ)/σ · γ + β. Arguments: x, γ, β, y, stats[groups, 2] (μ and 1/σ, kept for the gradient).

    The variance is summed around the mean, in a second pass: E[x²] − μ² cancels in float32.
    """

    def body(x: Any, gamma: Any, beta: Any, y: Any, stats: Any) -> None:
        with T.serial(spec.groups) as g:
            with T.grid(spec.size, spec.inner) as (s, i), T.sblock("sum"):
                vg, vs, vi = T.axis.remap("SRR", [g, s, i])
                with T.init():
                    T.buffer_store(stats, f32(0.0), [vg, 0])
                T.buffer_store(stats, stats[vg, 0] + x[vg, vs, vi], [vg, 0])
            with T.sblock("mean"):
                vg = T.axis.remap("S", [g])
                T.buffer_store(stats, stats[vg, 0] * f32(1.0 / spec.count), [vg, 0])
            with T.grid(spec.size, spec.inner) as (s, i), T.sblock("squares"):
                vg, vs, vi = T.axis.remap("SRR", [g, s, i])
                with T.init():
                    T.buffer_store(stats, f32(0.0), [vg, 1])
                centred = x[vg, vs, vi] - stats[vg, 0]
                T.buffer_store(stats, stats[vg, 1] + centred * centred, [vg, 1])
            with T.sblock("rstd"):
                vg = T.axis.remap("S", [g])
                variance = stats[vg, 1] * f32(1.0 / spec.count)
                T.buffer_store(stats, f32(1.0) / tirx.sqrt(variance + f32(spec.epsilon)), [vg, 1])
            with T.grid(spec.size, spec.inner) as (s, i), T.sblock("group_norm"):
                vg, vs, vi = T.axis.remap("SSS", [g, s, i])
                at = spec.affine_index(vg, vs)
                normed = (x[vg, vs, vi] - stats[vg, 0]) * stats[vg, 1]
                T.buffer_store(y, normed * gamma[at] + beta[at], [vg, vs, vi])

    args = [
        Arg("x", spec.shape), Arg("gamma", spec.affine_shape), Arg("beta", spec.affine_shape),
        Arg("y", spec.shape, role="out"), Arg("stats", spec.stats_shape, role="out"),
    ]  # fmt: skip
    return make_kernel("group_norm", spec, args, body, macs=0)


def group_norm_input_grad(spec: NormSpec) -> tirx.PrimFunc:
    """dx = (dy·γ − mean(dy·γ) − x̂ · mean(dy·γ·x̂)) / σ, means over the group. Arguments: x, γ, stats, dy, dx."""

    def body(x: Any, gamma: Any, stats: Any, dy: Any, dx: Any) -> None:
        plain = T.sblock_alloc_buffer((spec.groups,), "float32")
        weighted = T.sblock_alloc_buffer((spec.groups,), "float32")

        def terms(g: Any, s: Any, i: Any) -> tuple[Any, Any]:
            scaled = dy[g, s, i] * gamma[spec.affine_index(g, s)]
            return scaled, (x[g, s, i] - stats[g, 0]) * stats[g, 1]

        with T.serial(spec.groups) as g:
            with T.grid(spec.size, spec.inner) as (s, i), T.sblock("means"):
                vg, vs, vi = T.axis.remap("SRR", [g, s, i])
                with T.init():
                    T.buffer_store(plain, f32(0.0), [vg])
                    T.buffer_store(weighted, f32(0.0), [vg])
                scaled, normed = terms(vg, vs, vi)
                T.buffer_store(plain, plain[vg] + scaled * f32(1.0 / spec.count), [vg])
                T.buffer_store(weighted, weighted[vg] + scaled * normed * f32(1.0 / spec.count), [vg])
            with T.grid(spec.size, spec.inner) as (s, i), T.sblock("group_norm_input_grad"):
                vg, vs, vi = T.axis.remap("SSS", [g, s, i])
                scaled, normed = terms(vg, vs, vi)
                value = (scaled - plain[vg] - normed * weighted[vg]) * stats[vg, 1]
                T.buffer_store(dx, value, [vg, vs, vi])

    args = [
        Arg("x", spec.shape), Arg("gamma", spec.affine_shape), Arg("stats", spec.stats_shape), Arg("dy", spec.shape),
        Arg("dx", spec.shape, role="out"),
    ]  # fmt: skip
    return make_kernel("group_norm_input_grad", spec, args, body, macs=0)


def group_norm_scale_grad(spec: NormSpec) -> tirx.PrimFunc:
    """dγ = Σ dy · x̂ over the positions that share a γ. Arguments: x, stats, dy, dγ. (dβ is a plain sum: `bias_grad`.)"""

    def body(x: Any, stats: Any, dy: Any, grad: Any) -> None:
        if spec.shared:
            kinds, ranges = "RSR", spec.shape
        else:
            kinds, ranges = "SSR", spec.shape
        with T.grid(*ranges) as (g, s, i), T.sblock("group_norm_scale_grad"):
            vg, vs, vi = T.axis.remap(kinds, [g, s, i])
            at = spec.affine_index(vg, vs)
            with T.init():
                T.buffer_store(grad, f32(0.0), [at])
            normed = (x[vg, vs, vi] - stats[vg, 0]) * stats[vg, 1]
            T.buffer_store(grad, grad[at] + dy[vg, vs, vi] * normed, [at])

    args = [
        Arg("x", spec.shape), Arg("stats", spec.stats_shape), Arg("dy", spec.shape),
        Arg("grad", spec.affine_shape, role="out"),
    ]  # fmt: skip
    return make_kernel("group_norm_scale_grad", spec, args, body, macs=0)
