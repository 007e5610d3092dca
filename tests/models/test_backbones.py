"""The backbones have the paper's structure, and folding batch norm does not change what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tvm_tinytrain.errors import ShapeError
from tvm_tinytrain.models import Backbone, fuse, mcunet, mobilenet_v2, proxyless_nas

Factory = Callable[..., Backbone]


def count_weights_and_macs(model: Backbone, size: int) -> tuple[int, int]:
    totals = [0, 0]

    def hook(module: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        totals[0] += module.weight.numel()
        totals[1] += module.weight.numel() * output.shape[2] * output.shape[3]

    for unit in model.conv_units():
        unit.conv.register_forward_hook(hook)
    model.eval()(torch.zeros(1, 3, size, size))
    return totals[0], totals[1]


@pytest.mark.parametrize(
    ("factory", "layers", "blocks", "features", "weights", "macs"),
    [
        (mcunet, 42, 14, 160, 463_216, 22_453_504),
        (mobilenet_v2, 52, 17, 448, 288_864, 17_449_728),
        (proxyless_nas, 61, 20, 384, 357_680, 19_209_728),
    ],
)
def test_structure_is_the_papers(
    factory: Factory, layers: int, blocks: int, features: int, weights: int, macs: int
) -> None:
    """Kwon et al., ICML 2024, Table 4: 0.46 M / 22.5 M, 0.29 M / 17.4 M, 0.36 M / 19.2 M."""
    model = factory()
    assert (model.spec.num_layers, len(model.spec.blocks)) == (layers, blocks)
    assert len(model.conv_units()) == layers
    assert count_weights_and_macs(model, 128) == (weights, macs)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, features)


def test_mobilenet_v2_at_width_one_is_the_standard_one() -> None:
    model = mobilenet_v2(1.0, num_classes=1000)
    assert (
        sum(p.numel() for p in model.parameters()) == 3_504_872
    )  # the figure of Sandler et al.: 3.4 to 3.5 M
    assert [unit.conv.out_channels for unit in model.conv_units()][-1] == 1280


def test_weights_of_the_last_convolution_are_the_papers_last_layer() -> None:
    last = [f().conv_units()[-1].conv.weight.numel() for f in (mcunet, mobilenet_v2, proxyless_nas)]
    assert last == [92_160, 50_176, 36_864]


@pytest.mark.parametrize("factory", [mcunet, mobilenet_v2, proxyless_nas])
def test_fusing_keeps_the_function(factory: Factory) -> None:
    torch.manual_seed(1)
    model = factory(num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    x = torch.randn(2, 3, 48, 48)
    fused = fuse(model)
    assert fused.fused and not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    expected = model.eval().double()(x.double())
    torch.testing.assert_close(fused.double()(x.double()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [32, 48, 96, 130])
def test_input_size_is_free(size: int) -> None:
    assert mcunet(num_classes=3, fused=True)(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_no_classes_is_an_error() -> None:
    with pytest.raises(ShapeError, match="num_classes: found 0"):
        mcunet(num_classes=0)


def test_width_must_be_positive() -> None:
    with pytest.raises(ShapeError, match="width: found -1"):
        mobilenet_v2(-1)
