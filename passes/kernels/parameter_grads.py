"""The kernels that compute a parameter's gradient, made anew from their spec for other rows or another sink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import tirx

from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv2d_transpose import conv2d_transpose_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear_weight_grad
from tvm_tinytrain.passes.kernels.sinks import Sink

_WEIGHT_GRADS: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[..., tirx.PrimFunc]]] = {
    "conv2d_weight_grad": (Conv2DSpec.from_dict, conv2d_weight_grad),
    "conv2d_transpose_weight_grad": (Conv2DSpec.from_dict, conv2d_transpose_weight_grad),
    "linear_weight_grad": (LinearSpec.from_dict, linear_weight_grad),
}

PARAMETER_GRADS = ("bias_grad", *_WEIGHT_GRADS)
"""Kinds of the kernels that end in a sink."""


def is_parameter_grad(func: tvm.ir.BaseFunc) -> bool:
    """Whether a function is one of these kernels."""
    return kernel_kind(func) in PARAMETER_GRADS


def remake(
    kernel: tirx.PrimFunc,
    sink: Sink | None = None,
    *,
    channels: int | None = None,
    inputs: int | None = None,
    compact_weight: bool = False,
) -> tirx.PrimFunc:
    """The kernel for these list lengths and this sink; see `conv2d_weight_grad`. A bias has no ``inputs``."""
    spec, kind = kernel_spec(kernel), kernel_kind(kernel)
    options: dict[str, Any] = {"channels": channels, "compact_weight": compact_weight}
    if kind == "bias_grad":
        return bias_grad(spec["outer"], spec["size"], spec["inner"], sink, **options)
    read, make = _WEIGHT_GRADS[str(kind)]
    return make(read(spec), sink, inputs=inputs, **options)
