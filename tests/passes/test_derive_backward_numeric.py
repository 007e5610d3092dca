"""DeriveBackward: every gradient against PyTorch's autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.helpers import (
    Machine,
    assert_close,
    derived,
    folded,
    gradient_names,
    label,
    torch_gradients,
)
from tests.passes.networks import Mixed, Perceptron, Twice, sample, seeded
from tvm_tinytrain.config import MSE, BinaryCrossEntropy, CrossEntropy, Loss


class Branches(nn.Module):
    """A value with three readers, two of them layers; stride two with padding on one side; a clamp read twice: 3 classes."""

    shape = (2, 7, 6)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
        self.left = nn.Conv2d(4, 4, 1, groups=2)
        self.right = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.stem(x))
        z = self.left(y) + self.right(y) + y
        return self.head(F.avg_pool2d(F.relu(z), 2).mean([2, 3]) + y.mean([2, 3]))


def gradients(
    net: nn.Module, x: Tensor, target: np.ndarray, loss: Loss
) -> tuple[float, dict[str, np.ndarray]]:
    mod = derived(net, x, loss)
    value, *grads = Machine(mod).run("step", x.numpy(), target)
    return float(value[0]), dict(zip(gradient_names(mod), grads, strict=True))


@pytest.mark.parametrize("make", [Mixed, Twice, Perceptron, Branches], ids=lambda m: m.__name__)
def test_gradients_of_cross_entropy(make: Callable[[], nn.Module]) -> None:
    net, x = folded(seeded(make)), sample(*make.shape)
    value, grads = gradients(seeded(make), x, label(1), CrossEntropy())
    expected = torch_gradients(net, x, 1)
    assert value == pytest.approx(
        F.cross_entropy(net.double()(x.double()), torch.tensor([1])).item(), rel=1e-5
    )
    assert_close(grads, expected, 2e-5)
    assert set(grads) == set(expected)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (CrossEntropy(0.3), lambda y, t: F.cross_entropy(y, torch.tensor([2]), label_smoothing=0.3)),
        (MSE(), lambda y, t: F.mse_loss(y, t.double())),
        (BinaryCrossEntropy(), lambda y, t: F.binary_cross_entropy_with_logits(y, t.double())),
    ],
    ids=["smoothing", "mse", "bce"],
)
def test_gradients_of_losses(loss: Loss, reference: Any) -> None:
    net, x = seeded(Perceptron), sample(*Perceptron.shape)
    target = torch.rand(1, 3, generator=torch.Generator().manual_seed(3))
    given = label(2) if isinstance(loss, CrossEntropy) else target.numpy()
    value, grads = gradients(net, x, given, loss)
    assert value == pytest.approx(reference(net.double()(x.double()), target).item(), rel=1e-5)
    assert_close(grads, torch_gradients(net, x, target, reference), 1e-5)


def test_ties_and_bounds_as_in_pytorch() -> None:
    """Equal values in a pooling window, activations exactly at 0 and 6."""

    class Ties(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu6(self.conv(x))
            return self.head(F.max_pool2d(y, 2).flatten(1))

    net = seeded(Ties)
    with torch.no_grad():
        net.conv.weight.fill_(1.0)
        net.conv.bias.zero_()
    x = torch.tensor([[0.0, 0, 6, 6], [0, 0, 6, 6], [1, 1, -1, 7], [1, 1, 8, -2]]).reshape(1, 1, 4, 4)
    _, grads = gradients(net, x, label(0), CrossEntropy())
    assert_close(grads, torch_gradients(net, x, 0), 1e-6)
