"""Average pooling's gradient with a padding of its own on each side, which ONNX has and PyTorch's modules do not: against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm

from tests.native import FAST
from tvm_tinytrain.passes.kernels.pooling import PoolSpec, avg_pool2d_grad


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("padding", [(1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0), (0, 1, 0, 1), (2, 1, 0, 1)])
def test_average_pooling(padding: tuple[int, int, int, int], count_include_pad: bool) -> None:
    top, left, bottom, right = padding
    x = torch.zeros(1, 2, 7, 6, requires_grad=True)
    around = (left, right, top, bottom)
    y = F.avg_pool2d(F.pad(x, around), 3, (1, 2))
    if not count_include_pad:
        y = y / F.avg_pool2d(F.pad(torch.ones_like(x), around), 3, (1, 2))
    dy = torch.from_numpy(np.random.default_rng(0).normal(size=y.shape).astype(np.float32))
    y.backward(dy)
    assert x.grad is not None
    spec = PoolSpec(2, 7, 6, *y.shape[2:], (3, 3), (1, 2), padding, count_include_pad=count_include_pad)
    np.testing.assert_allclose(gradient(spec, dy), x.grad.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("dilation", [(2, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (2, 1, 1, 3)])
def test_dilated_windows(
    padding: tuple[int, int, int, int], dilation: tuple[int, int], count_include_pad: bool
) -> None:
    """Windows with gaps: what they average is counted tap by tap."""
    top, left, bottom, right = padding
    x = torch.zeros(1, 2, 9, 8, requires_grad=True)

    def sums(x: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(2, 1, 3, 2)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), ones, None, (2, 1), 0, dilation, groups=2)

    y = sums(x) / (6 if count_include_pad else sums(torch.ones_like(x)))
    dy = torch.from_numpy(np.random.default_rng(0).normal(size=y.shape).astype(np.float32))
    y.backward(dy)
    assert x.grad is not None
    spec = PoolSpec(2, 9, 8, *y.shape[2:], (3, 2), (2, 1), padding, dilation, count_include_pad)
    np.testing.assert_allclose(gradient(spec, dy), x.grad.numpy(), rtol=1e-5, atol=1e-6)


def gradient(spec: PoolSpec, dy: torch.Tensor) -> np.ndarray:
    """What the kernel makes of ``dy``."""
    kernel = avg_pool2d_grad(spec).with_attr("global_symbol", "main")
    dx = tvm.runtime.tensor(np.zeros(spec.x_shape, np.float32))
    tvm.compile(tvm.IRModule({"main": kernel}), FAST)["main"](tvm.runtime.tensor(dy.numpy()), dx)
    return dx.numpy()
