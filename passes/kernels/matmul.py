"""Products of two activations (or of an activation and a parameter that is no layer), batched, either side transposed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32, make_kernel


@dataclass(frozen=True)
class MatmulSpec:
    """c[m, n] = Σ_k a[m, k] · b[k, n] for each of ``batch`` matrices.

    ``a_transposed``: a is stored as [k, m]; ``b_transposed``: b as [n, k]. An operand that is not ``…_batched`` has a batch axis of
    length one and serves all matrices; a result that is not batched is summed over the batch.
    """

    batch: int
    m: int
    n: int
    k: int
    a_transposed: bool = False
    b_transposed: bool = False
    a_batched: bool = True
    b_batched: bool = True
    c_batched: bool = True

    @staticmethod
    def from_dict(values: dict[str, Any]) -> MatmulSpec:
        """Inverse of ``dataclasses.asdict``; other keys are ignored."""
        return MatmulSpec(**{k: values[k] for k in MatmulSpec.__dataclass_fields__})

    @property
    def a_shape(self) -> tuple[int, int, int]:
        """[batch or 1, m, k], the last two swapped where it is transposed."""
        rows = (self.k, self.m) if self.a_transposed else (self.m, self.k)
        return (self.batch if self.a_batched else 1, *rows)

    @property
    def b_shape(self) -> tuple[int, int, int]:
        """[batch or 1, k, n], the last two swapped where it is transposed."""
        rows = (self.n, self.k) if self.b_transposed else (self.k, self.n)
        return (self.batch if self.b_batched else 1, *rows)

    @property
    def c_shape(self) -> tuple[int, int, int]:
        """[batch or 1, m, n]."""
        return (self.batch if self.c_batched else 1, self.m, self.n)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batch * self.m * self.n * self.k

    def a_grad(self) -> tuple[MatmulSpec, tuple[str, str]]:
        """The product that gives ∂L/∂a, and its two operands among ``a``, ``b`` and ``dc``."""
        if self.a_transposed:  # da[k, m] = Σ_n b[k, n] · dc[m, n]
            spec = MatmulSpec(
                self.batch,
                self.k,
                self.m,
                self.n,
                self.b_transposed,
                True,
                self.b_batched,
                True,
                self.a_batched,
            )
            return spec, ("b", "dc")
        spec = MatmulSpec(
            self.batch,
            self.m,
            self.k,
            self.n,
            False,
            not self.b_transposed,
            True,
            self.b_batched,
            self.a_batched,
        )
        return spec, ("dc", "b")

    def b_grad(self) -> tuple[MatmulSpec, tuple[str, str]]:
        """The product that gives ∂L/∂b, and its two operands."""
        if self.b_transposed:  # db[n, k] = Σ_m dc[m, n] · a[m, k]
            spec = MatmulSpec(
                self.batch,
                self.n,
                self.k,
                self.m,
                True,
                self.a_transposed,
                True,
                self.a_batched,
                self.b_batched,
            )
            return spec, ("dc", "a")
        spec = MatmulSpec(
            self.batch,
            self.k,
            self.n,
            self.m,
            not self.a_transposed,
            False,
            self.a_batched,
            True,
            self.b_batched,
        )
        return spec, ("a", "dc")


def product_spec(a: tuple[int, ...], b: tuple[int, ...], out: tuple[int, ...]) -> MatmulSpec | None:
    """The product of a[…, m, k] and b[…, k, n] with result ``out``; None where their batch axes broadcast crosswise."""
    batch = math.prod(out) // (a[-2] * b[-1])
    a_batch, b_batch = math.prod(a[:-2]), math.prod(b[:-2])
    if a_batch not in (1, batch) or b_batch not in (1, batch):
        return None
    return MatmulSpec(batch, a[-2], b[-1], a[-1], a_batched=a_batch == batch, b_batched=b_batch == batch)


def matmul(spec: MatmulSpec) -> tirx.PrimFunc:
    """The product. Arguments: a, b, c of the spec's shapes."""

    def body(a: Any, b: Any, c: Any) -> None:
        kinds = "SSSR" if spec.c_batched else "RSSR"
        acc = T.sblock_alloc_buffer(spec.c_shape, "float32")
        with T.grid(spec.batch, spec.m, spec.n, spec.k) as (g, i, j, k), T.sblock("matmul"):
            vg, vi, vj, vk = T.axis.remap(kinds, [g, i, j, k])
            at = [vg if spec.c_batched else 0, vi, vj]
            with T.init():
                T.buffer_store(acc, f32(0.0), at)
            ga, gb = (vg if spec.a_batched else 0), (vg if spec.b_batched else 0)
            left = a[ga, vk, vi] if spec.a_transposed else a[ga, vi, vk]
            right = b[gb, vj, vk] if spec.b_transposed else b[gb, vk, vj]
            T.buffer_store(acc, acc[tuple(at)] + left * right, at)
        with T.grid(*spec.c_shape) as (g, i, j), T.sblock("epilogue"):
            at = list(T.axis.remap("SSS", [g, i, j]))
            T.buffer_store(c, acc[tuple(at)], at)

    args = [Arg("a", spec.a_shape), Arg("b", spec.b_shape), Arg("c", spec.c_shape, role="out")]
    return make_kernel("matmul", spec, args, body, macs=spec.macs)
