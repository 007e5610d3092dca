"""Where a gradient goes once a kernel has it in a register: stored, accumulated, or straight into the weight.

A sink is the last block of every weight- and bias-gradient kernel. An updating sink reads the weight at ``where``, the optimizer
state at ``compact`` (rows of the selected channels only) and writes both in place, so that the gradient never exists as a tensor.
The update rules are those of ``torch.optim``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, f32

HYPER_SIZE = 4
"""float32 values of the tensor ``hyper``: learning rate, 1 − β₁^t, 1 − β₂^t (Adam's bias corrections), unused.

The corrections themselves, not the powers: 1 − 0.999^t is 0.001 at the first step, of which a difference from 1 in float32 keeps four
digits, and every weight would move by 1e-5 of its step too far or too little.
"""


@dataclass(frozen=True)
class Write:
    """The gradient is stored: g ← ∂L/∂w."""

    kind = "write"

    def args(self, compact: tuple[int, ...], full: tuple[int, ...]) -> list[Arg]:
        """The arguments that this sink adds to a kernel."""
        return [Arg("g", compact, role="out")]

    def emit(self, bufs: Sequence[Any], compact: list[Any], where: list[Any], grad: Any) -> None:
        """Emits the stores for one element."""
        T.buffer_store(bufs[0], grad, compact)


@dataclass(frozen=True)
class Accumulate:
    """The gradient is added to an accumulator: g ← g + ∂L/∂w."""

    kind = "accumulate"

    def args(self, compact: tuple[int, ...], full: tuple[int, ...]) -> list[Arg]:
        """The arguments that this sink adds to a kernel."""
        return [Arg("g", compact, role="inout")]

    def emit(self, bufs: Sequence[Any], compact: list[Any], where: list[Any], grad: Any) -> None:
        """Emits the stores for one element."""
        T.buffer_store(bufs[0], bufs[0][tuple(compact)] + grad, compact)


@dataclass(frozen=True)
class SGDUpdate:
    """torch.optim.SGD: g ← g + λw; u ← μu + g; w ← w − lr·(g + μu if nesterov else u)."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    lr_scale: float = 1.0

    kind = "sgd"

    def args(self, compact: tuple[int, ...], full: tuple[int, ...]) -> list[Arg]:
        """The arguments that this sink adds to a kernel."""
        state = [Arg("u", compact, role="inout")] if self.momentum else []
        return [Arg("weight", full, role="inout"), *state, Arg("hyper", (HYPER_SIZE,))]

    def emit(self, bufs: Sequence[Any], compact: list[Any], where: list[Any], grad: Any) -> None:
        """Emits the stores for one element."""
        weight, hyper = bufs[0], bufs[-1]
        old = weight[tuple(where)]
        if self.weight_decay:
            grad = grad + f32(self.weight_decay) * old
        if self.momentum:
            # the weight last: with weight decay, every reading of `grad` reads the weight again
            state = bufs[1]
            T.buffer_store(state, f32(self.momentum) * state[tuple(compact)] + grad, compact)
            step = state[tuple(compact)]
            if self.nesterov:
                step = grad + f32(self.momentum) * step
            T.buffer_store(weight, old - _rate(hyper, self.lr_scale) * step, where)
            return
        T.buffer_store(weight, old - _rate(hyper, self.lr_scale) * grad, where)


@dataclass(frozen=True)
class AdamUpdate:
    """torch.optim.Adam, or AdamW when ``decoupled``: the bias corrections 1 − β^t come from ``hyper``.

    With ``state`` "bfloat16" one int32 word holds both moments, the first one in its upper half; the step is taken from them as stored.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False
    lr_scale: float = 1.0
    state: str = "float32"

    kind = "adam"

    def args(self, compact: tuple[int, ...], full: tuple[int, ...]) -> list[Arg]:
        """The arguments that this sink adds to a kernel."""
        moments = [Arg("m", compact, role="inout"), Arg("v", compact, role="inout")]
        if self.state == "bfloat16":
            moments = [Arg("mv", compact, "int32", role="inout")]
        return [Arg("weight", full, role="inout"), *moments, Arg("hyper", (HYPER_SIZE,))]

    def emit(self, bufs: Sequence[Any], compact: list[Any], where: list[Any], grad: Any) -> None:
        """Emits the stores for one element."""
        weight, hyper = bufs[0], bufs[-1]
        at = tuple(compact)
        rate = _rate(hyper, self.lr_scale)
        if self.weight_decay and self.decoupled:
            T.buffer_store(weight, weight[tuple(where)] * (f32(1.0) - rate * f32(self.weight_decay)), where)
        elif self.weight_decay:
            grad = grad + f32(self.weight_decay) * weight[tuple(where)]
        if self.state == "bfloat16":
            m_now, v_now = _bfloat16_moments(bufs[1], at, grad, self.beta1, self.beta2)
        else:
            m, v = bufs[1:3]
            # g is used in both moments: v first, because the stores below must not change what `grad` reads
            T.buffer_store(v, f32(self.beta2) * v[at] + f32(1.0 - self.beta2) * grad * grad, compact)
            T.buffer_store(m, f32(self.beta1) * m[at] + f32(1.0 - self.beta1) * grad, compact)
            m_now, v_now = m[at], v[at]
        corrected = tirx.sqrt(v_now / hyper[2]) + f32(self.eps)
        step = m_now / hyper[1] / corrected
        T.buffer_store(weight, weight[tuple(where)] - rate * step, where)


def _bfloat16_moments(mv: Any, at: tuple[Any, ...], grad: Any, beta1: float, beta2: float) -> tuple[Any, Any]:
    """Stores both moments as bfloat16 in one word; returns them as stored."""
    half, upper = (tirx.const(c, "uint32") for c in (0x8000, 0xFFFF0000))
    sixteen = tirx.const(16, "uint32")

    def moments() -> tuple[Any, Any]:
        word = mv[at].astype("uint32")
        return tirx.reinterpret("float32", word & upper), tirx.reinterpret("float32", word << sixteen)

    m, v = moments()
    m_bits = tirx.reinterpret("uint32", f32(beta1) * m + f32(1.0 - beta1) * grad)
    v_bits = tirx.reinterpret("uint32", f32(beta2) * v + f32(1.0 - beta2) * grad * grad)
    word = ((m_bits + half) & upper) | ((v_bits + dither_of(grad)) >> sixteen)
    T.buffer_store(mv, word.astype("int32"), list(at))
    return moments()


def dither_of(grad: Any) -> Any:
    """A random number of 16 bits, as uint32: the lowest bits of a gradient; a half, for rounding to nearest, where there is none."""
    bits = tirx.reinterpret("uint32", grad) & tirx.const(0xFFFF, "uint32")
    return tirx.Select(grad == f32(0.0), tirx.const(0x8000, "uint32"), bits)


Sink = Write | Accumulate | SGDUpdate | AdamUpdate


def _rate(hyper: Any, scale: float) -> Any:
    return hyper[0] if scale == 1.0 else hyper[0] * f32(scale)


def sink_from_spec(spec: dict[str, Any]) -> Sink:
    """The sink that a kernel's ``tt.spec`` describes."""
    kinds: dict[str, type[Sink]] = {
        "write": Write,
        "accumulate": Accumulate,
        "sgd": SGDUpdate,
        "adam": AdamUpdate,
    }
    return kinds[spec["sink"]](**spec["update"])
