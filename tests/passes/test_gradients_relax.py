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
from tvm_tinytrain.passes.lower_layers import LowerLayers

SHAPE = (1, 3, 5, 4)
Ours = Callable[[relax.Expr], relax.Expr]
Theirs = Callable[[Tensor], Tensor]


def pad(mode: str, *widths: int) -> Ours:
    return lambda x: relax.op.nn.pad(x, list(widths), mode)


def cut(axes: list[int], begin: list[int], end: list[int], steps: list[int]) -> Ours:
    return lambda x: relax.op.strided_slice(x, axes, begin, end, steps)


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
    for each in (Canonicalize(), LowerLayers(), AppendLoss(MSE())):
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
