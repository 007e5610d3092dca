"""Operators as Relax and ONNX write them and PyTorch's export never does: gradients against PyTorch autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from tvm import relax

from tests.passes.operator_oracle import Arrays, derive, run
from tvm_tinytrain.config import MSE
from tvm_tinytrain.errors import UnsupportedOperatorError
from tvm_tinytrain.frontend.relax import from_relax
from tvm_tinytrain.passes.append_loss import AppendLoss
from tvm_tinytrain.passes.canonicalize import Canonicalize
from tvm_tinytrain.passes.derive_backward import DeriveBackward
from tvm_tinytrain.passes.fold_batch_norm import FoldBatchNorm
from tvm_tinytrain.passes.lower_layers import LowerLayers

SHAPE = (1, 3, 5, 4)
Ours = Callable[[relax.Expr], relax.Expr]
Theirs = Callable[[Tensor], Tensor]


def pad(mode: str, *widths: int) -> Ours:
    return lambda x: relax.op.nn.pad(x, list(widths), mode)


def cut(axes: list[int], begin: list[int], end: list[int], steps: list[int]) -> Ours:
    return lambda x: relax.op.strided_slice(x, axes, begin, end, steps)


def resized(mode: str, *size: int) -> Ours:
    return lambda x: relax.op.image.resize2d(
        x, size, layout="NCHW", method="linear", coordinate_transformation_mode=mode
    )


def asymmetric(*size: int) -> Theirs:
    """Output i lies at i · extent / size, between two elements."""

    def along(x: Tensor, axis: int, count: int) -> Tensor:
        place = torch.arange(count) * (x.shape[axis] / count)
        low = place.long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        weight = (place - low).reshape([-1 if i == axis else 1 for i in range(4)])
        return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight

    return lambda x: along(along(x, 2, size[0]), 3, size[1])


def taken(mode: str, *index: int) -> Ours:
    return lambda x: relax.op.take(x, relax.const(np.array(index), "int64"), 2, mode)


def normalised(axis: int, scale: bool = True, center: bool = True) -> Ours:
    """Batch norm of ``axis`` with the statistics and factors of `STATISTICS`."""

    def body(x: relax.Expr) -> relax.Expr:
        arrays = [relax.const(np.float32(v)[: SHAPE[axis]]) for v in STATISTICS]
        norm = relax.op.nn.batch_norm(x, *arrays, axis=axis, scale=scale, center=center)
        return relax.TupleGetItem(norm, 0)

    return body


def by_torch(axis: int, scale: bool = True, center: bool = True) -> Theirs:
    """What `normalised` says."""

    def body(x: Tensor) -> Tensor:
        gamma, beta, mean, var = (torch.tensor(v[: SHAPE[axis]]).double() for v in STATISTICS)
        factors = gamma if scale else None, beta if center else None
        return F.batch_norm(x.movedim(axis, 1), mean, var, *factors).movedim(1, axis)

    return body


def layer_normalised(axis: int, scale: bool = True, center: bool = True) -> Ours:
    """Layer norm of ``axis`` with the factors of `STATISTICS`."""

    def body(x: relax.Expr) -> relax.Expr:
        arrays = [relax.const(np.float32(v)[: SHAPE[axis]]) for v in STATISTICS[:2]]
        return relax.op.nn.layer_norm(x, *arrays, axes=[axis], scale=scale, center=center)

    return body


def layer_norm_by_torch(axis: int, scale: bool = True, center: bool = True) -> Theirs:
    """What `layer_normalised` says."""

    def body(x: Tensor) -> Tensor:
        gamma, beta = (torch.tensor(v[: SHAPE[axis]]).double() for v in STATISTICS[:2])
        factors = gamma if scale else None, beta if center else None
        return F.layer_norm(x.movedim(axis, -1), SHAPE[axis : axis + 1], *factors).movedim(-1, axis)

    return body


def convolved(**layouts: str) -> Ours:
    """A convolution of as many outputs as inputs, which would fit weights of either layout."""
    return lambda x: relax.op.nn.conv2d(x, two(36, (3, 3, 2, 2))[0], **layouts)


def rms_normalised(*axes: int) -> Ours:
    """Root mean square norm of ``axes`` with a weight that rises from 0.5 to 2."""
    weight = np.linspace(0.5, 2, int(np.prod([SHAPE[a] for a in axes])), dtype=np.float32)
    shaped = relax.const(weight.reshape([SHAPE[a] for a in axes]))
    return lambda x: relax.op.nn.rms_norm(x, shaped, list(axes), 1e-3)


def rms_norm_by_torch(*axes: int) -> Theirs:
    """What `rms_normalised` says."""

    def body(x: Tensor) -> Tensor:
        shape = [SHAPE[a] if a in axes else 1 for a in range(4)]
        weight = torch.linspace(0.5, 2, int(np.prod(shape)), dtype=torch.float64).reshape(shape)
        return x / (x.square().mean(axes, keepdim=True) + 1e-3).sqrt() * weight

    return body


STATISTICS = (
    [0.5, 2.0, 1.5, 3.0, 1.0],
    [0.1, -0.2, 0.3, 0.0, 1.0],
    [0.2, 0.5, -1.0, 0.7, 0.0],
    [1.0, 0.5, 2.0, 3.0, 0.2],
)
"""γ, β, mean and variance."""

CASES: dict[str, tuple[Ours, Theirs]] = {
    "slice backwards": (cut([2], [4], [-6], [-1]), lambda x: x.flip(2)),
    "slice backwards by steps": (
        cut([2, 3], [-1, 3], [-100, 0], [-2, -1]),
        lambda x: x[:, :, [4, 2, 0]][..., [3, 2, 1]],
    ),
    "slice backwards beside forwards": (cut([-1, 1], [9, 1], [-9, 3], [-3, 1]), lambda x: x[:, 1:3][..., [3, 0]]),
    "slice from before the first": (cut([2], [-100], [3], [1]), lambda x: x[:, :, :3]),
    "pad reflect": (
        pad("reflect", 0, 0, 0, 0, 2, 1, 1, 2),
        lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    ),
    "pad replicate": (
        pad("replicate", 0, 0, 0, 0, 2, 1, 1, 2),
        lambda x: F.pad(x, (1, 2, 2, 1), mode="replicate"),
    ),
    "pad circular": (
        pad("circular", 0, 0, 0, 0, 2, 1, 1, 2),
        lambda x: F.pad(x, (1, 2, 2, 1), mode="circular"),
    ),
    "take, wrapped": (taken("wrap", 0, 6, -2, -9), lambda x: x[:, :, [0, 1, 3, 1]]),
    "take, clipped": (taken("clip", 0, 6, -2), lambda x: x[:, :, [0, 4, 0]]),
    "resize to the nearest, halves to even": (
        lambda x: relax.op.image.resize2d(
            x, (9, 7), layout="NCHW", method="nearest_neighbor", coordinate_transformation_mode="align_corners"
        ),
        lambda x: x[:, :, [0, 0, 1, 2, 2, 2, 3, 4, 4]][..., [0, 0, 1, 2, 2, 2, 3]],
    ),
    "resize, asymmetric": (resized("asymmetric", 8, 3), asymmetric(8, 3)),
    "resize, asymmetric, by a whole factor": (resized("asymmetric", 10, 2), asymmetric(10, 2)),
    "resize to one row": (
        resized("pytorch_half_pixel", 1, 7),
        lambda x: F.interpolate(x[:, :, :1], (1, 7), mode="bilinear"),
    ),
    "resize to one pixel": (resized("pytorch_half_pixel", 1, 1), lambda x: x[:, :, :1, :1]),
    "take from the end": (taken("fast", 0, -2), lambda x: x[:, :, [0, 3]]),
    "batch norm of channels": (normalised(1), by_torch(1)),
    "batch norm of rows": (normalised(2), by_torch(2)),
    "batch norm of columns": (normalised(3), by_torch(3)),
    "batch norm without a scale": (normalised(1, scale=False), by_torch(1, scale=False)),
    "batch norm without a shift": (normalised(2, center=False), by_torch(2, center=False)),
    "batch norm without either": (normalised(3, False, False), by_torch(3, False, False)),
    "layer norm without a scale": (layer_normalised(3, scale=False), layer_norm_by_torch(3, scale=False)),
    "layer norm without a shift": (layer_normalised(3, center=False), layer_norm_by_torch(3, center=False)),
    "layer norm of channels": (layer_normalised(1), layer_norm_by_torch(1)),
    "layer norm of rows, without either": (layer_normalised(2, False, False), layer_norm_by_torch(2, False, False)),
    "root mean square norm of columns": (rms_normalised(3), rms_norm_by_torch(3)),
    "root mean square norm of pixels": (rms_normalised(2, 3), rms_norm_by_torch(2, 3)),
    "root mean square norm of channels": (rms_normalised(1), rms_norm_by_torch(1)),
    "running sum": (lambda x: relax.op.cumsum(x, 2), lambda x: x.cumsum(2)),
    "running sum of everything": (lambda x: relax.op.cumsum(x), lambda x: x.flatten().cumsum(0)),
    "running sum of those before": (
        lambda x: relax.op.cumsum(x, 1, exclusive=True),
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 0)).cumsum(1)[:, :-1],
    ),
    "product of rows and columns": (lambda x: relax.op.prod(x, [2, 3]), lambda x: x.prod(2).prod(2)),
    "product of everything": (lambda x: relax.op.prod(x), lambda x: x.prod()),
    "lower triangle": (lambda x: relax.op.tril(x, -1), lambda x: x.tril(-1)),
    "upper triangle": (lambda x: relax.op.triu(x, 1), lambda x: x.triu(1)),
    "pad channels": (pad("circular", 0, 0, 1, 0, 0, 0, 0, 0), lambda x: torch.cat([x[:, -1:], x], 1)),
}  # fmt: skip


@cache
def errors() -> dict[str, float]:
    """‖Δ‖₂ / ‖g‖₂ of each case's parameter, which is multiplied with the input in front of the operator; and of the loss."""
    rng = np.random.default_rng(0)
    values = {f"w{i}": rng.uniform(0.5, 1.5, SHAPE).astype(np.float32) for i in range(len(CASES))}
    x = rng.normal(size=SHAPE).astype(np.float32)
    exact = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in values.items()}
    out = torch.cat(
        [
            theirs(torch.tensor(x).double() * w).reshape(1, -1)
            for (_, theirs), w in zip(CASES.values(), exact.values(), strict=True)
        ],
        1,
    )
    label = rng.normal(size=tuple(out.shape)).astype(np.float32)
    loss = F.mse_loss(out, torch.tensor(label).double())
    loss.backward()
    got_loss, got = gradients([ours for ours, _ in CASES.values()], values, x, label)
    found = {"loss": abs(got_loss - loss.item()) / loss.item()}
    for name, (parameter, w) in zip(CASES, exact.items(), strict=True):
        assert w.grad is not None
        grad = w.grad.numpy()
        found[name] = float(np.linalg.norm(got[parameter] - grad) / np.linalg.norm(grad))
    return found


def gradients(bodies: list[Ours], values: Arrays, x: np.ndarray, label: np.ndarray) -> tuple[float, Arrays]:
    """Loss and gradients of the functions side by side, by our passes."""
    bb = relax.BlockBuilder()
    tensors = [relax.Var(n, relax.TensorType(SHAPE, "float32")) for n in ("x", *values)]
    with bb.function("main", tensors):
        with bb.dataflow():
            parts = [
                bb.emit(relax.op.reshape(bb.emit(body(bb.emit(relax.op.multiply(tensors[0], w)))), (1, -1)))
                for body, w in zip(bodies, tensors[1:], strict=True)
            ]
            out = bb.emit_output(relax.op.concat(parts, 1))
        bb.emit_func_output(out)
    mod = from_relax(bb.get(), values)
    for each in (Canonicalize(), FoldBatchNorm(), LowerLayers(), AppendLoss(MSE())):
        mod = each(mod)
    return run(derive(mod, list(values)), x, label)


@pytest.mark.parametrize("name", ["loss", *CASES])
def test_gradients(name: str) -> None:
    assert errors()[name] <= 1e-5


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (pad("reflect", 0, 0, 0, 0, 0, 0, 1, 1), "relax.nn.pad: found mode reflect; allowed mode constant"),
        (
            cut([3], [3], [-9], [-1]),
            r"relax.strided_slice: found steps \(1, 1, 1, -1\); allowed steps above 0",
        ),
    ],
)
def test_what_canonicalize_left_is_refused(body: Ours, message: str) -> None:
    bb = relax.BlockBuilder()
    x, w = (relax.Var(n, relax.TensorType(SHAPE, "float32")) for n in "xw")
    with bb.function("main", [x, w]):
        bb.emit_func_output(bb.normalize(body(relax.op.multiply(x, w))))
    mod = from_relax(bb.get(), {"w": np.ones(SHAPE, np.float32)})
    mod = AppendLoss(MSE())(LowerLayers()(mod))
    with pytest.raises(UnsupportedOperatorError, match=message):
        DeriveBackward(["w"])(mod)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (taken("fast", 0, 5), "relax.take: found index 5 of 5 elements, mode fast; allowed -5 to 4"),
        (lambda x: relax.op.nn.adaptive_avg_pool2d(x, (2, 2), "NHWC"), "found layouts .*NHWC.*; allowed NCHW data"),
        (lambda x: relax.op.nn.adaptive_avg_pool2d(x, (2, 2), "NCHW", "NHWC"), "found layouts .*NHWC.*; allowed NCHW data"),
        (
            lambda x: relax.op.nn.adaptive_avg_pool1d(relax.op.reshape(x, (1, 15, 4)), 2, "NWC"),
            "relax.nn.adaptive_avg_pool1d: found layouts .*NWC.*; allowed NCW data",
        ),
        (
            lambda x: relax.op.nn.group_norm(x, *two(3), num_groups=3, channel_axis=1, axes=[2]),
            r"relax.nn.group_norm: found channel axis 1, axes \[2\]; allowed channel axis 1, axes \[2, 3\]",
        ),
        (
            lambda x: relax.op.nn.instance_norm(x, *two(5), channel_axis=2, axes=[3]),
            r"relax.nn.instance_norm: found channel axis 2, axes \[3\]; allowed channel axis 1, axes \[2, 3\]",
        ),
        (convolved(out_layout="NHWC"), r"relax.nn.conv2d: found layouts \('NCHW', 'OIHW', 'NHWC'\) of data, weights and result"),
        (convolved(kernel_layout="IOHW"), r"relax.nn.conv2d: found layouts .*IOHW.*; allowed NCHW data with OIHW weights"),
        (lambda x: convolved(kernel_layout="IOHW")(pad("constant", 0, 0, 0, 0, 1, 1, 1, 1)(x)), "found layouts .*IOHW"),
        (
            lambda x: relax.op.nn.conv2d_transpose(x, two(36, (3, 3, 2, 2))[0], kernel_layout="OIHW"),
            r"relax.nn.conv2d_transpose: found layouts .*OIHW.*; allowed NCHW data with IOHW weights",
        ),
        (
            lambda x: relax.op.nn.conv1d(relax.op.reshape(x, (1, 3, 20)), two(3 * 3 * 2, (3, 3, 2))[0], out_layout="NWC"),
            "relax.nn.conv1d: found layouts .*NWC.*; allowed NCW data with OIW weights, NCW results",
        ),
    ],
)  # fmt: skip
def test_what_would_be_computed_otherwise_is_refused(body: Ours, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        gradients([body], {"w": np.ones(SHAPE, np.float32)}, np.ones(SHAPE, np.float32), np.ones(1))


def two(size: int, shape: tuple[int, ...] = (-1,)) -> list[relax.Expr]:
    return [relax.const(np.ones(size, np.float32).reshape(shape))] * 2
