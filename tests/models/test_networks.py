"""The zoo of the gradient tests has the published sizes, is reproducible, and its activations are sane."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from benchmarks import networks


def count(model: nn.Module, *, statistics: bool) -> int:
    total = sum(p.numel() for p in model.parameters())
    return total + statistics * sum(b.numel() for name, b in model.named_buffers() if "running" in name)


@pytest.mark.parametrize(
    ("make", "statistics", "parameters"),
    [  # Keras counts the running statistics of batch norm (MLPerf Tiny), PyTorch does not
        (networks.ResNet8, True, 78_666),
        (networks.DsCnn, True, 24_908),
        (networks.MobileNetV1Quarter, True, 221_794),
        (networks.Autoencoder, True, 269_992),
        (lambda: networks.MobileNetV3Small(1000), False, 2_542_856),
        (lambda: networks.efficientnet_lite0(num_classes=1000), False, 4_652_008),
        (lambda: networks.SqueezeNet(1000), False, 1_235_496),
    ],
)
def test_published_number_of_parameters(
    make: Callable[[], nn.Module], statistics: bool, parameters: int
) -> None:
    assert count(make(), statistics=statistics) == parameters


@pytest.mark.parametrize("name", list(networks.zoo()))
def test_network_is_reproducible_and_sane(name: str) -> None:
    network = networks.zoo()[name]
    before = torch.get_rng_state()
    model = network.make()
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(network.input_shape, generator=generator)
    y = model(x)
    assert torch.equal(y, network.make()(x))
    assert y.isfinite().all() and 0.05 < float(y.detach().std()) < 20
    if name in networks.REGRESSION:
        assert y.shape == x.shape
    y.square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients)
