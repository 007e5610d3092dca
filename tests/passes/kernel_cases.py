"""Kernels with awkward shapes and random arguments, and their results without any schedule: what lowering is held against."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import tvm
from tvm import tirx

from tests.native import FAST, linked
from tvm_tinytrain.passes.kernels import losses, rows
from tvm_tinytrain.passes.kernels.bias_grad import advance, apply_update, bias_grad
from tvm_tinytrain.passes.kernels.builder import ROLES_ATTR
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_input_grad, conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.elementwise import clip_grad
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear, linear_input_grad, linear_weight_grad
from tvm_tinytrain.passes.kernels.pooling import PoolSpec, avg_pool2d_grad, max_pool2d_grad
from tvm_tinytrain.passes.kernels.sinks import Accumulate, AdamUpdate, SGDUpdate

CONVOLUTIONS = {
    "dense": Conv2DSpec(3, 7, 10, 5, (3, 3), padding=(1, 1, 1, 1)),
    "dilated": Conv2DSpec(2, 9, 8, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2)),
    "large": Conv2DSpec(4, 6, 6, 4, (5, 5), (2, 2), (2, 2, 2, 2)),
    "point": Conv2DSpec(5, 3, 7, 6, (1, 1)),
    "point_image": Conv2DSpec(8, 4, 4, 12, (1, 1)),
    "point_strided": Conv2DSpec(3, 5, 5, 4, (1, 1), (2, 2)),
    "depthwise": Conv2DSpec(5, 6, 9, 5, (3, 3), padding=(1, 1, 1, 1), groups=5),
    "depthwise_strided": Conv2DSpec(4, 7, 7, 4, (3, 3), (2, 2), (1, 1, 1, 1), groups=4),
    "depthwise_large": Conv2DSpec(2, 8, 11, 2, (7, 7), padding=(3, 3, 3, 3), groups=2),
    "grouped": Conv2DSpec(6, 5, 5, 9, (3, 3), padding=(1, 0, 0, 1), groups=3),
    "multiplier": Conv2DSpec(3, 5, 6, 6, (3, 3), groups=3),
}
SGD, ADAM = SGDUpdate(0.9, 0.01, True), AdamUpdate(0.8, 0.9, 1e-3, 0.1, True)
DENSE, LINEAR, WIDE = CONVOLUTIONS["dense"], LinearSpec(1, 13, 7), LinearSpec(3, 16, 8)
POOL = PoolSpec(3, 7, 8, 4, 4, (3, 3), (2, 2), (1, 1, 1, 1))


@cache
def kernels() -> dict[str, tirx.PrimFunc]:
    """All cases by name."""
    found: dict[str, tirx.PrimFunc] = {}
    for name, spec in CONVOLUTIONS.items():
        found[f"conv_{name}"] = conv2d(spec, bias=True, low=0.0, high=6.0)
        found[f"dx_{name}"] = conv2d_input_grad(spec)
        found[f"dw_{name}"] = conv2d_weight_grad(spec)
        some = None if spec.depthwise else max(1, spec.group_inputs - 1)
        found[f"sgd_{name}"] = conv2d_weight_grad(spec, SGD, channels=spec.out_channels - 1, inputs=some)
    for name, spec in {"vector": LINEAR, "rows": WIDE}.items():
        found[f"linear_{name}"] = linear(spec, bias=True)
        found[f"linear_dx_{name}"] = linear_input_grad(spec)
        found[f"linear_dw_{name}"] = linear_weight_grad(spec, channels=5, inputs=11)
        found[f"linear_adam_{name}"] = linear_weight_grad(spec, ADAM)
    found |= {
        "plain_conv": conv2d(DENSE),
        "dw_accumulate": conv2d_weight_grad(DENSE, Accumulate(), channels=2),
        "dw_adam": conv2d_weight_grad(DENSE, ADAM),
        "db": bias_grad(1, 7, 30),
        "db_sgd": bias_grad(2, 7, 9, SGD, channels=3),
        "apply": apply_update((5, 4, 3, 3), ADAM, channels=3, inputs=2),
        "advance": advance(ADAM),
        "clip": clip_grad((1, 3, 5, 7), 0.0, 6.0),
        "max_pool": max_pool2d_grad(POOL),
        "avg_pool": avg_pool2d_grad(POOL),
        "loss": losses.softmax_cross_entropy(7, 0.1),
        "dloss": losses.softmax_cross_entropy_grad(7, 0.1),
        "bce": losses.elementwise_loss("bce", 9),
        "dmse": losses.elementwise_loss_grad("mse", 9),
        "rows_dense": rows.conv2d_rows(DENSE, 2, bias="rows", low=0.0),
        "rows_depthwise": rows.conv2d_rows(CONVOLUTIONS["depthwise"], 3, bias="full"),
        "rows_linear": rows.linear_rows(WIDE, 3, bias=None),
        "rows_dx": rows.conv2d_input_grad_rows(CONVOLUTIONS["dilated"], 2),
        "rows_dx_depthwise": rows.conv2d_input_grad_rows(CONVOLUTIONS["depthwise_strided"], 3),
        "rows_dx_linear": rows.linear_input_grad_rows(WIDE, 3),
    }
    return found


def roles(kernel: tirx.PrimFunc) -> list[str]:
    """``in``, ``out`` or ``inout`` for each argument."""
    return str(kernel.attrs[ROLES_ATTR]).split(",")


def arguments(kernel: tirx.PrimFunc, seed: int = 0) -> list[np.ndarray]:
    """Random arguments: lists of channels ascending, second moments positive, bias corrections below one."""
    rng = np.random.default_rng(seed)
    special: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "channels": lambda shape: np.sort(rng.permutation(shape[0] + 1)[: shape[0]]),
        "inputs": lambda shape: np.sort(rng.permutation(shape[0] + 1)[: shape[0]]),
        "label": lambda shape: rng.integers(0, 7, shape),
        "v": lambda shape: rng.uniform(0.1, 1.0, shape),
        "hyper": lambda shape: np.array([0.01, 0.2, 0.1, 0.0]),
        "y": lambda shape: rng.choice([0.0, 6.0, 1.5, 4.0], shape),
    }
    found = []
    for param in kernel.params:
        shape = tuple(int(d) for d in param.shape)
        make = special.get(param.name, lambda s: rng.normal(size=s))
        found.append(np.asarray(make(shape)).astype(str(param.ty.dtype)))
    return found


@cache
def _as_written() -> tvm.runtime.Module:
    """All cases compiled at once, which takes a twentieth of one compilation for each."""
    mod = {name: kernel.with_attr("global_symbol", name) for name, kernel in kernels().items()}
    return linked(tvm.compile(tvm.IRModule(mod), FAST))


def reference(name: str, given: list[np.ndarray]) -> list[np.ndarray]:
    """All arguments after a case's kernel as it is written ran."""
    tensors = [tvm.runtime.tensor(a) for a in given]
    _as_written()[name](*tensors)
    return [t.numpy() for t in tensors]


def assert_results(
    kernel: tirx.PrimFunc, got: list[np.ndarray], expected: list[np.ndarray], name: str
) -> None:
    """What the kernel writes is close to ``expected``; what it only reads is untouched."""
    for role, have, want, param in zip(roles(kernel), got, expected, kernel.params, strict=True):
        if role == "in":
            np.testing.assert_array_equal(have, want, err_msg=f"{name}: {param.name} was written")
        else:
            error = np.abs(have - want).max() / max(np.abs(want).max(), 1e-6)
            assert error <= 3e-6, f"{name}: {param.name} is off by {error:.1e}"
