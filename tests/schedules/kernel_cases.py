"""Kernels whose sizes no tile divides, and running many of them in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import tvm
from tvm import tirx

from tvm_tinytrain.emit.kernel_set import Argument, KernelSet, emit_kernel_set
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.kernels import rows
from tvm_tinytrain.passes.kernels.bias_grad import bias_grad
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_input_grad, conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear, linear_input_grad, linear_weight_grad
from tvm_tinytrain.passes.kernels.listed import LISTED, conv2d_input_grad_listed, has_listed_form
from tvm_tinytrain.passes.kernels.masks import clip_grad_mask, pack_mask
from tvm_tinytrain.passes.kernels.matmul import MatmulSpec, matmul
from tvm_tinytrain.passes.kernels.sinks import Accumulate, SGDUpdate, Write
from tvm_tinytrain.passes.lower_kernels import LowerKernels
from tvm_tinytrain.schedules import RULES, Rule, ScheduleKernels
from tvm_tinytrain.targets.target import Target, parse_target

M7 = parse_target("c -mcpu=cortex-m7")
V3 = parse_target("c -mcpu=x86-64-v3")
Kernels = dict[str, tirx.PrimFunc]

POINTWISE = {
    "one_channel": Conv2DSpec(1, 3, 3, 1, (1, 1)),
    "one_pixel": Conv2DSpec(9, 1, 1, 13, (1, 1)),
    "primes": Conv2DSpec(5, 3, 7, 7, (1, 1)),
    "column": Conv2DSpec(6, 11, 1, 4, (1, 1)),
    "tile_and_rest": Conv2DSpec(16, 7, 7, 25, (1, 1)),
    "strided": Conv2DSpec(4, 7, 9, 6, (1, 1), (2, 2)),
    "grouped": Conv2DSpec(4, 5, 5, 6, (1, 1), groups=2),
    "even": Conv2DSpec(6, 4, 8, 13, (1, 1)),
}
DEPTHWISE = {
    "odd": Conv2DSpec(5, 9, 11, 5, (3, 3), (1, 1), (1, 1, 1, 1), groups=5),
    "smaller_than_a_tile": Conv2DSpec(3, 2, 3, 3, (3, 3), (1, 1), (1, 1, 1, 1), groups=3),
    "smaller_than_the_window": Conv2DSpec(2, 3, 3, 2, (7, 7), (1, 1), (3, 3, 3, 3), groups=2),
    "five": Conv2DSpec(4, 7, 19, 4, (5, 5), (1, 1), (2, 2, 2, 2), groups=4),
    "unpadded": Conv2DSpec(3, 8, 21, 3, (3, 3), groups=3),
    "half": Conv2DSpec(4, 10, 36, 4, (3, 3), (2, 2), (1, 1, 1, 1), groups=4),
    "half_odd": Conv2DSpec(4, 9, 37, 4, (5, 5), (2, 2), (2, 2, 2, 2), groups=4),
    "half_seven": Conv2DSpec(2, 8, 8, 2, (7, 7), (2, 2), (3, 3, 3, 3), groups=2),
    "third": Conv2DSpec(2, 11, 13, 2, (3, 3), (3, 3), (0, 1, 1, 0), groups=2),
    "dilated": Conv2DSpec(2, 9, 8, 2, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), groups=2),
    "even": Conv2DSpec(3, 6, 16, 3, (3, 3), (1, 1), (1, 1, 1, 1), groups=3),
    "even_half": Conv2DSpec(3, 6, 32, 3, (5, 5), (2, 2), (2, 2, 2, 2), groups=3),
    "dilated_half": Conv2DSpec(2, 9, 8, 2, (3, 3), (2, 2), (2, 2, 2, 2), (2, 2), groups=2),
}
DENSE = {
    "stem": Conv2DSpec(3, 13, 15, 7, (3, 3), (2, 2), (1, 1, 1, 1)),
    "even": Conv2DSpec(3, 8, 32, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
    "same": Conv2DSpec(4, 6, 9, 5, (3, 3), (1, 1), (1, 1, 1, 1)),
    "lopsided": Conv2DSpec(2, 7, 8, 3, (2, 4), (1, 2), (0, 3, 1, 0)),
    "dilated": Conv2DSpec(2, 9, 9, 3, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    "line": Conv2DSpec(3, 1, 17, 4, (1, 5), (1, 1), (0, 2, 0, 2)),
    "grouped": Conv2DSpec(6, 6, 7, 9, (3, 3), (1, 1), (1, 1, 1, 1), groups=3),
    "multiplier": Conv2DSpec(3, 5, 6, 6, (3, 3), (2, 1), (1, 1, 1, 1), groups=3),
}
LINEAR = {
    "vector": LinearSpec(1, 37, 11),
    "rows": LinearSpec(3, 16, 8),
    "one": LinearSpec(1, 5, 1),
    "even": LinearSpec(2, 24, 10),
}


@cache
def kernels() -> Kernels:
    """All cases by name."""
    found: Kernels = {}
    for group, specs in {"pointwise": POINTWISE, "depthwise": DEPTHWISE, "dense": DENSE}.items():
        for name, spec in specs.items():
            found |= _of_convolution(f"{group}_{name}", spec)
    for name, line in LINEAR.items():
        few = max(1, line.out_features // 2)
        found[f"linear_{name}"] = linear(line, bias=True)
        found[f"linear_{name}_dx"] = linear_input_grad(line)
        found[f"linear_{name}_dw"] = linear_weight_grad(line, Accumulate())
        found[f"linear_{name}_dw_some"] = linear_weight_grad(line, SGDUpdate(0.9), channels=few, inputs=3)
        found[f"linear_{name}_rows"] = rows.linear_rows(line, few, bias="rows", low=0.0)
        found[f"linear_{name}_dx_rows"] = rows.linear_input_grad_rows(line, few)
    found |= {
        "db": bias_grad(1, 7, 30),
        "db_one_pixel": bias_grad(1, 5, 1, SGDUpdate(), channels=1),
        "db_some": bias_grad(2, 9, 19, SGDUpdate(), channels=3),
        "clip": clip_grad((1, 3, 5, 7), 0.0, 6.0),
        "clip_below": clip_grad((1, 3, 5, 7), 0.0, None),
        "clip_other": clip_grad((2, 3), -1.0, 1.0),
        "mask": pack_mask(61, 0.0, 6.0),
        "mask_other": pack_mask(64, -1.0, None),
        "clip_mask": clip_grad_mask(61),
        "matmul": matmul(MatmulSpec(2, 5, 7, 9)),
        "matmul_transposed": matmul(MatmulSpec(3, 8, 6, 4, True, True, True, False, False)),
    }
    return found


def _of_convolution(name: str, spec: Conv2DSpec) -> Kernels:
    few = max(1, spec.out_channels // 3)
    some_inputs = None if spec.depthwise else max(1, spec.group_inputs - 1)
    made = {
        name: conv2d(spec, bias=True, low=0.0, high=6.0),
        f"{name}_plain": conv2d(spec),
        f"{name}_dx": conv2d_input_grad(spec),
        f"{name}_dw": conv2d_weight_grad(spec, Write()),
        f"{name}_dw_one": conv2d_weight_grad(spec, SGDUpdate(), channels=1),
        f"{name}_dw_some": conv2d_weight_grad(spec, SGDUpdate(0.9, 0.1), channels=few, inputs=some_inputs),
        f"{name}_rows": rows.conv2d_rows(spec, few, bias="full", low=0.0),
    }
    if spec.groups == 1 or spec.depthwise:
        made[f"{name}_dx_rows"] = rows.conv2d_input_grad_rows(spec, few)
        if has_listed_form(spec) and spec.in_channels > 1:
            made[f"{name}_dx_listed"] = conv2d_input_grad_listed(spec, max(1, spec.in_channels // 2))
    return made


def lower(found: Mapping[str, tirx.PrimFunc], rules: Sequence[Rule] = RULES, target: Target = M7) -> Kernels:
    """The kernels scheduled by ``rules`` for a target and lowered."""
    mod = tvm.IRModule({name: func.without_attr("global_symbol") for name, func in found.items()})
    mod = LowerKernels(target.to_tvm())(ScheduleKernels(target.to_tvm(), rules)(mod))
    return {gv.name_hint: func for gv, func in mod.functions.items()}


def library(
    found: Mapping[str, tirx.PrimFunc], rules: Sequence[Rule] = RULES, target: Target = M7
) -> KernelSet:
    """One library of all kernels."""
    return emit_kernel_set("cases", lower(found, rules, target))


def values(args: Sequence[Argument], kernel: tirx.PrimFunc, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arguments by tensor; lists of channels ascend and have gaps."""
    rng = np.random.default_rng(seed)
    spec = kernel_spec(kernel)
    listed = kernel_kind(kernel) == LISTED
    limits = {
        "channels": spec.get("in_channels" if listed else "out_channels")
        or spec.get("out_features")
        or spec.get("size", 0),
        "inputs": spec.get("in_features") or spec.get("in_channels", 0) // spec.get("groups", 1),
    }
    found = {}
    for arg, param in zip(args, kernel.params, strict=True):
        if arg.dtype == "int32":
            value = np.sort(rng.permutation(limits[param.name])[: arg.shape[0]])
        elif arg.dtype == "uint8":
            value = rng.integers(0, 256, arg.shape)
        elif param.name == "y" and arg.role == "in":
            value = rng.choice([0.0, 6.0, 1.5, 4.0], arg.shape)
        else:
            value = rng.standard_normal(arg.shape)
        found[arg.tensor] = value.astype(arg.dtype)
    return found


def results(
    library: InProcess, entry: str, args: Sequence[Argument], given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """All arguments after one call."""
    for name, value in given.items():
        library.write(name, value)
    library.call(entry)
    return {a.tensor: library.read(a.tensor) for a in args}
