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
    kernel = avg_pool2d_grad(spec).with_attr("global_symbol", "main")
    dx = tvm.runtime.tensor(np.zeros(x.shape, np.float32))
    tvm.compile(tvm.IRModule({"main": kernel}), FAST)["main"](tvm.runtime.tensor(dy.numpy()), dx)
    np.testing.assert_allclose(dx.numpy(), x.grad.numpy(), rtol=1e-5, atol=1e-6)
