"""Small networks with every form that passes have to know; random, but always the same."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The module with random weights and random batch norm statistics, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make()
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
            if norm.affine:
                nn.init.normal_(norm.weight, 1.0, 0.3)
                nn.init.normal_(norm.bias, 0.0, 0.3)
            nn.init.normal_(norm.running_mean, 0.0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return net.eval()


def sample(*shape: int, seed: int = 1) -> Tensor:
    """A random input of this shape with a batch of one in front."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


class Mixed(nn.Module):
    """Strided, grouped, depthwise and pointwise convolutions, batch norm, ReLU6, residual, pooling, mean, linear: 5 classes."""

    shape = (3, 9, 11)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.stem(x)))
        y = self.pointwise(F.relu6(self.depthwise(y))) + y
        y = F.relu(self.grouped(y))
        y = F.max_pool2d(y, 2)
        return self.head(y.mean([2, 3]))


class Twice(nn.Module):
    """One convolution and one linear layer that are each applied twice: 4 classes."""

    shape = (4, 5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.square = nn.Linear(4, 4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(F.relu(self.conv(x)))
        z = y.mean([2, 3])
        return self.head(F.relu(self.square(F.relu(self.square(z)))))


class Perceptron(nn.Module):
    """Two linear layers: 3 outputs."""

    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.last = nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))
