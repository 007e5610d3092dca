"""Adam with both moments in 8 bits, scaled block by block; a block is what is trained of one output channel.

Block-wise quantisation is Dettmers et al.'s (8-bit Optimizers via Block-wise Quantization, ICLR 2022); the codes here are computed, not
looked up: the first moment is sign · (c/127)² of its block's largest magnitude, the second one (c/255)⁴ of its largest value, so that
both resolve small values finely. Two weights share one int32 word (8 bits of each moment). The second moment is rounded at random
with the lowest bits of the gradient, because it changes by less than a code per step, and never to zero from above.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.builder import Arg, axes, f32, intermediate, loops, make_kernel
from tvm_tinytrain.passes.kernels.sinks import HYPER_SIZE, AdamUpdate, dither_of

MOMENTS = 2
_TINY = 1e-30
"""Less than any scale that matters; keeps 0/0 out of a block without gradients."""


def words_of(shape: tuple[int, ...]) -> int:
    """int32 words that the moments of one block take."""
    return (math.prod(shape[1:]) + 1) // 2


def apply_block_update(
    shape: tuple[int, ...],
    sink: AdamUpdate,
    *,
    channels: int | None = None,
    inputs: int | None = None,
    clears: bool = True,
) -> tirx.PrimFunc:
    """As `bias_grad.apply_update`, for ``sink.state`` "int8".

    Arguments: g (in place where it is cleared), (channels), (inputs), weight (in place), words[rows, ⌈n/2⌉] int32 and
    scales[rows, 2] (both in place), hyper.
    """
    compact = (channels or shape[0], inputs or shape[1], *shape[2:])
    rows = compact[0]
    args = [Arg("g", compact, role="inout" if clears else "in")]
    args += [Arg("channels", (channels,), "int32")] if channels is not None else []
    args += [Arg("inputs", (inputs,), "int32")] if inputs is not None else []
    own = len(args)
    args += [
        Arg("weight", shape, role="inout"),
        Arg("words", (rows, words_of(compact)), "int32", role="inout"),
        Arg("scales", (rows, MOMENTS), role="inout"),
        Arg("hyper", (HYPER_SIZE,)),
    ]

    def body(*bufs: Any) -> None:
        lists = list(bufs[1:own])
        outs = lists.pop(0) if channels is not None else None
        ins = lists.pop(0) if inputs is not None else None
        peaks = block_peaks(rows)
        update_blocks(bufs[0], bufs[own:], peaks, compact, sink, outs=outs, ins=ins, clears=clears)

    return make_kernel(
        "apply_update", {"shape": list(shape)}, args, body, sink=sink.kind, update=asdict(sink), channels=channels,
        inputs=inputs, macs=0, clears=clears,
    )  # fmt: skip


def block_peaks(rows: int) -> list[Any]:
    """Buffers for the largest magnitudes of each block's moments."""
    return [intermediate(name, (rows,)) for name in ("peak_m", "peak_v")]


def update_blocks(
    g: Any,
    state: Sequence[Any],
    peaks: Sequence[Any],
    compact: tuple[int, ...],
    sink: AdamUpdate,
    *,
    outs: Any = None,
    ins: Any = None,
    only: Any = None,
    clears: bool = False,
) -> None:
    """Emits the update from the gradient ``g[compact]``; ``state`` are weight, words, scales, hyper, ``outs`` and ``ins`` the lists.

    With ``only``, the variable of a loop over rows, the block of that row. ``clears``: the gradient is zero afterwards.
    """
    weight, words, scales, hyper = state
    rows, size = compact[0], math.prod(compact[1:])

    def place(row: Any, element: Any) -> tuple[list[Any], list[Any]]:
        """Indices of an element of a block in the gradient and in the weight."""
        at, rest = [], element
        for extent in reversed(compact[1:]):
            at.append(rest % extent)
            rest = rest // extent
        at = [row, *reversed(at)]
        where = list(at)
        where[0] = row if outs is None else outs[row]
        where[1] = at[1] if ins is None else ins[at[1]]
        return at, where

    def moments(row: Any, element: Any, shift: Any) -> tuple[Any, Any, Any]:
        """The gradient, with weight decay, and both moments as they become."""
        at, where = place(row, element)
        grad = g[tuple(at)]
        if sink.weight_decay and not sink.decoupled:
            grad = grad + f32(sink.weight_decay) * weight[tuple(where)]
        m, v = _decode(words[row, element // 2], shift, [scales[row, i] for i in range(MOMENTS)])
        m = f32(sink.beta1) * m + f32(1.0 - sink.beta1) * grad
        return grad, m, f32(sink.beta2) * v + f32(1.0 - sink.beta2) * grad * grad

    def update(row: Any, word: Any, halves: int) -> None:
        """The elements of one word: codes first, then the steps from what they say."""
        codes = []
        for half in range(halves):
            grad, m, v = moments(row, 2 * word + half, 16 * half)
            codes.append(_encode(grad, m, v, [p[row] for p in peaks]) << tirx.const(16 * half, "uint32"))
        packed = codes[0] if halves == 1 else codes[0] | codes[1]
        T.buffer_store(words, packed.astype("int32"), [row, word])
        for half in range(halves):
            at, where = place(row, 2 * word + half)
            m, v = _decode(words[row, word], 16 * half, [p[row] for p in peaks])
            now, rate = weight[tuple(where)], _rate(hyper, sink)
            if sink.weight_decay and sink.decoupled:
                now = now * (f32(1.0) - rate * f32(sink.weight_decay))
            corrected = tirx.sqrt(v / hyper[2]) + f32(sink.eps)
            T.buffer_store(weight, now - rate * (m / hyper[1] / corrected), where)
            if clears:
                T.buffer_store(g, f32(0.0), at)

    for which, name in enumerate(("largest_m", "largest_v")):
        with _nest(only, rows, size) as found, T.sblock(name):
            vr, ve = axes("SR", found)
            with T.init():
                T.buffer_store(peaks[which], f32(_TINY), [vr])
            value = tirx.abs(moments(vr, ve, ve % 2 * 16)[1 + which])
            T.buffer_store(peaks[which], tirx.max(peaks[which][vr], value), [vr])
    if size > 1:
        with _nest(only, rows, size // 2) as found, T.sblock("sink"):
            vr, vw = axes("SS", found)
            update(vr, vw, 2)
    if size % 2:
        with _nest(only, rows) as found, T.sblock("sink" if size == 1 else "odd"):
            (vr,) = axes("S", found)
            update(vr, size // 2, 1)
    with _nest(only, rows, MOMENTS) as found, T.sblock("scales"):
        vr, vi = axes("SS", found)
        T.buffer_store(scales, tirx.Select(vi == 0, peaks[0][vr], peaks[1][vr]), [vr, vi])


@contextmanager
def _nest(only: Any, rows: int, *extents: int) -> Iterator[list[Any]]:
    """Loops over all rows and ``extents``; over the extents of row ``only``, where it is given."""
    if only is None:
        with loops(" ".join("rabc"[: 1 + len(extents)]), rows, *extents) as found:
            yield found
    elif extents:
        with loops(" ".join("abc"[: len(extents)]), *extents) as found:
            yield [only, *found]
    else:
        yield [only]


def _rate(hyper: Any, sink: AdamUpdate) -> Any:
    return hyper[0] if sink.lr_scale == 1.0 else hyper[0] * f32(sink.lr_scale)


def _bits(word: Any, shift: Any, count: int) -> Any:
    """``count`` bits of a word from bit ``shift`` on, as float32."""
    found = (word.astype("uint32") >> tirx.Cast("uint32", shift)) & tirx.const((1 << count) - 1, "uint32")
    return found.astype("int32").astype("float32")


def _decode(word: Any, shift: Any, scales: list[Any]) -> tuple[Any, Any]:
    """Both moments: bits 0 to 6 the first one's root, bit 7 its sign, bits 8 to 15 the second one's fourth root."""
    shift = tirx.const(shift, "int32") if isinstance(shift, int) else shift
    root, sign, fourth = _bits(word, shift, 7), _bits(word, shift + 7, 1), _bits(word, shift + 8, 8)
    m = root * root * f32(1.0 / 127.0**2) * scales[0] * (f32(1.0) - f32(2.0) * sign)
    square = fourth * fourth * f32(1.0 / 255.0**2)
    return m, square * square * scales[1]


def _encode(grad: Any, m: Any, v: Any, scales: list[Any]) -> Any:
    """The 16 bits of both moments, as uint32."""
    root = tirx.sqrt(tirx.abs(m) / scales[0]) * f32(127.0) + f32(0.5)
    fourth = tirx.sqrt(tirx.sqrt(v / scales[1])) * f32(255.0)
    random = dither_of(grad).astype("int32").astype("float32") * f32(1.0 / 65536.0)
    second = tirx.min(tirx.max(fourth + random, tirx.Select(v > f32(0.0), f32(1.0), f32(0.0))), f32(255.0))
    first = tirx.min(root, f32(127.0)).astype("int32").astype("uint32")
    sign = tirx.Select(m < f32(0.0), tirx.const(128, "uint32"), tirx.const(0, "uint32"))
    return first | sign | (second.astype("int32").astype("uint32") << tirx.const(8, "uint32"))
