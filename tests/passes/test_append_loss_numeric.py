"""AppendLoss: losses of PyTorch, on outputs of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.helpers import Machine, label, lowered
from tests.passes.networks import Perceptron, sample, seeded
from tvm_tinytrain.config import MSE, BinaryCrossEntropy, CrossEntropy
from tvm_tinytrain.passes.append_loss import AppendLoss


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy(smoothing: float) -> None:
    net, x = seeded(Perceptron), sample(*Perceptron.shape)
    machine = Machine(AppendLoss(CrossEntropy(smoothing))(lowered(net, x)))
    for scale in (1.0, 300.0):  # the second would overflow exp if the largest logit were not subtracted
        for cls in range(3):
            expected = F.cross_entropy(
                net.double()(scale * x.double()), torch.tensor([cls]), label_smoothing=smoothing
            )
            got = machine.run("step", scale * x.numpy(), label(cls))[0]
            np.testing.assert_allclose(got, [expected.item()], rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize(
    ("loss", "reference"), [(MSE(), F.mse_loss), (BinaryCrossEntropy(), F.binary_cross_entropy_with_logits)]
)
def test_elementwise_losses(loss: Any, reference: Any) -> None:
    net: nn.Module = seeded(lambda: nn.Conv2d(2, 3, 3))
    x, target = sample(2, 5, 4), torch.rand(1, 3, 3, 2, generator=torch.Generator().manual_seed(2))
    machine = Machine(AppendLoss(loss)(lowered(net, x)))
    for scale in (1.0, 100.0):
        expected = reference(net.double()(scale * x.double()), target.double())
        got = machine.run("step", scale * x.numpy(), target.numpy())[0]
        np.testing.assert_allclose(got, [expected.item()], rtol=3e-6)
