"""MakeRuntimeRows: kernels over channel lists learn how long the lists are only when they run."""

from __future__ import annotations

import tvm
from tvm import tirx

from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.listed import LISTED
from tvm_tinytrain.passes.kernels.sinks import sink_from_spec

RUNTIME_ROWS = "tt.runtime_rows"
_OVER_ROWS = (
    "conv2d_rows",
    "linear_rows",
    "conv2d_input_grad_rows",
    "linear_input_grad_rows",
    LISTED,
    "conv2d_weight_grad",
    "linear_weight_grad",
    "bias_grad",
    "apply_update",
)


@tvm.transform.module_pass(opt_level=0, name="MakeRuntimeRows")
class MakeRuntimeRows:
    """Marks every kernel over trained rows with ``tt.runtime_rows``: its C function takes their number as its last argument.

    Runs on the module of a task-adaptive library, in which every such kernel was made for all channels of its layer; the lists and
    the rows' tensors keep that capacity in the IR, so the module stays valid and runs as before.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Replaces or marks the kernels."""
        out = {}
        for gv, func in mod.functions.items():
            if isinstance(func, tirx.PrimFunc) and kernel_kind(func) in _OVER_ROWS and _has_rows(func):
                func = _plain(func).with_attr(RUNTIME_ROWS, 1)
            out[gv] = func
        return tvm.IRModule(out, attrs=mod.attrs)


def _has_rows(func: tirx.PrimFunc) -> bool:
    """Whether the kernel runs over trained rows: by its kind, or because its weight holds rows only."""
    kind, spec = kernel_kind(func), kernel_spec(func)
    return str(kind).endswith("_rows") or kind in ("apply_update", LISTED) or spec.get("channels") is not None


def _plain(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A weight gradient whose rows are an axis of their own; other kernels have that form already."""
    spec = kernel_spec(func)
    if kernel_kind(func) != "conv2d_weight_grad" or spec.get("by_rows"):
        return func
    return conv2d_weight_grad(
        Conv2DSpec.from_dict(spec),
        sink_from_spec(spec),
        channels=spec["channels"],
        inputs=spec["inputs"],
        compact_weight=spec["compact_weight"],
        plain=True,
    )
