"""FoldBatchNorm: predictions stay as they were, and those of PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.passes.helpers import Machine, assert_close
from tests.passes.networks import Mixed, sample, seeded
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.canonicalize import Canonicalize
from tvm_tinytrain.passes.fold_batch_norm import FoldBatchNorm


class Both(nn.Module):
    """A batch norm that two convolutions read, one behind a convolution with bias, one behind a shared result."""

    shape = (3, 6, 5)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(3, 4, 1, bias=False)
        self.third = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b = self.b(x)
        return self.second(self.a(x)) + self.third(b) * b


class OneDimensional(nn.Module):
    shape = (2, 12)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, bias=False)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Columns(nn.Module):
    """Biases of other shapes than a vector."""

    shape = (3, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.second, self.behind = nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.column, self.vector = nn.Parameter(torch.rand(4, 1, 1)), nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x) + self.column)
        return self.behind(self.second(x) + self.vector[:, None, None])


class OverRows(nn.Module):
    """Views between product, bias and norm."""

    shape = (3, 4, 5)

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.permute(0, 2, 3, 1)).flatten(0, 2))


@pytest.mark.parametrize("make", [Mixed, Both, OneDimensional], ids=lambda m: m.__name__)
def test_predictions_stay(make: Callable[[], nn.Module]) -> None:
    net, x = seeded(make), sample(*make.shape)
    before = import_model(net, example_inputs=(x,))
    after = FoldBatchNorm()(before)
    assert "batch_norm" not in after["main"].script()
    expected = net.double()(x.double()).detach().numpy()
    for mod in (before, after):
        assert_close({"y": Machine(mod).run("main", x.numpy())[0]}, {"y": expected}, 2e-6)


def test_tiny_variance_is_folded_in_double_precision() -> None:
    conv, norm = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=1e-5)
    with torch.no_grad():
        norm.running_var.copy_(torch.tensor([1e-12, 4e6]))
        norm.running_mean.copy_(torch.tensor([1.0, -1e3]))
    net, x = nn.Sequential(conv, norm).eval(), sample(1, 3, 3)
    expected = net.double()(x.double()).detach().numpy()
    after = FoldBatchNorm()(import_model(net.float(), example_inputs=(x,)))
    got = Machine(after).run("main", x.numpy())[0]
    assert np.abs(got - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("make", [Columns, OverRows])
def test_biases_behind_views_take_it_in(make: Callable[[], nn.Module]) -> None:
    net, x = seeded(make), sample(*make.shape)
    after = FoldBatchNorm()(Canonicalize()(import_model(net, example_inputs=(x,))))
    assert not {gv.name_hint for gv in after.functions} - {"main"}
    expected = net.double()(x.double()).detach().numpy()
    assert_close({"y": Machine(after).run("main", x.numpy())[0]}, {"y": expected}, 2e-6)
