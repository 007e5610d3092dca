"""Weight gradients that update row by row, for optimizers that need a row's whole gradient before they change its first weight.

The gradient of one row at a time stands in the kernel's workspace; it dies with the row's update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.passes.kernels.block_update import MOMENTS, block_peaks, update_blocks, words_of
from tvm_tinytrain.passes.kernels.builder import (
    Arg,
    axes,
    f32,
    intermediate,
    kernel_kind,
    kernel_spec,
    loops,
    make_kernel,
)
from tvm_tinytrain.passes.kernels.conv2d_grad import weight_grad_sums
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec
from tvm_tinytrain.passes.kernels.sinks import HYPER_SIZE, AdamUpdate


def row_update(kernel: tirx.PrimFunc, sink: AdamUpdate) -> tirx.PrimFunc | None:
    """The weight gradient ``kernel`` over listed rows, which then updates these rows: compact weight, ``sink.state`` "int8".

    Arguments: those of the kernel without its result, weight[rows, …], words[rows, ⌈n/2⌉] int32 and scales[rows, 2] (all in place),
    hyper. None for a kernel of another kind, or without a list of its rows.
    """
    spec, kind = kernel_spec(kernel), kernel_kind(kernel)
    if kind not in ("conv2d_weight_grad", "linear_weight_grad") or spec["inputs"] or not spec["channels"]:
        return None
    conv = Conv2DSpec.from_dict(spec) if kind == "conv2d_weight_grad" else None
    dense = LinearSpec.from_dict(spec) if conv is None else None
    rows = int(spec["channels"])
    if conv is not None:
        compact: tuple[int, ...] = (rows, conv.group_inputs, *conv.kernel)
        x_shape: tuple[int, ...] = (1, conv.in_channels, conv.height, conv.width)
        dy_shape: tuple[int, ...] = (1, conv.out_channels, conv.out_height, conv.out_width)
    else:
        assert dense is not None
        compact = (rows, dense.in_features)
        x_shape, dy_shape = (dense.rows, dense.in_features), (dense.rows, dense.out_features)
    args = [
        Arg("x", x_shape),
        Arg("dy", dy_shape),
        Arg("channels", (rows,), "int32"),
        Arg("weight", compact, role="inout"),
        Arg("words", (rows, words_of(compact)), "int32", role="inout"),
        Arg("scales", (rows, MOMENTS), role="inout"),
        Arg("hyper", (HYPER_SIZE,)),
    ]

    def body(x: Any, dy: Any, channels: Any, *state: Any) -> None:
        grad, peaks = intermediate("grad", compact), block_peaks(rows)
        names = " ".join("abc"[: len(compact) - 1])
        with T.serial(rows) as r:
            # a block of its own, because what follows changes what it has read: its parts are scheduled by themselves
            with T.sblock("gradient"):
                (row,) = axes("S", [r])
                acc = intermediate("acc", compact[1:])
                if conv is not None:
                    with loops("c kh kw i j", *compact[1:], conv.out_height, conv.out_width) as found:
                        weight_grad_sums(conv, acc, x, dy, found, channels, row=row)
                else:
                    assert dense is not None
                    with loops("k n", dense.in_features, dense.rows) as found:
                        _linear_sums(acc, x, dy, found, channels, row)
                with loops(names, *compact[1:]) as found, T.sblock("gather"):
                    at = axes("S" * len(compact[1:]), found)
                    T.buffer_store(grad, acc[tuple(at)], [row, *at])
            update_blocks(grad, state, peaks, compact, sink, only=r)

    kept = {k: v for k, v in spec.items() if k not in ("sink", "update", "compact_weight")}
    return make_kernel(
        str(kind), kept, args, body, sink=sink.kind, update=asdict(sink), compact_weight=True, by_rows=True
    )


def _linear_sums(acc: Any, x: Any, dy: Any, found: Sequence[Any], channels: Any, row: Any) -> None:
    with T.sblock("linear_weight_grad"):
        k, n = axes("SR", found)
        with T.init():
            T.buffer_store(acc, f32(0.0), [k])
        T.buffer_store(acc, acc[k] + dy[n, channels[row]] * x[n, k], [k])
