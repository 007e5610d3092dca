"""TinyTL's lite residual modules in PyTorch, beside the blocks of the zoo's networks: the reference of inserted adapters."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import MobileNetV3Small, ResNet8
from tvm_tinytrain.models.blocks import InvertedBottleneck

BLOCKS = (InvertedBottleneck, ResNet8.Stack, MobileNetV3Small.Block)
"""Modules that are one block of a network."""


class WithLiteResidual(nn.Module):
    """block(x) + upsample(conv1x1(relu(conv(pool(x))))); ``strides`` are those of the block."""

    def __init__(self, block: nn.Module, x: Tensor, y: Tensor, *, kernel: int = 5, groups: int = 2) -> None:
        super().__init__()
        self.block = block
        channels = x.shape[1]
        stride = [max(1, round(a / b)) for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
        groups = math.gcd(groups, channels)
        self.conv = nn.Conv2d(channels, channels, kernel, (stride[0], stride[1]), kernel // 2, groups=groups)
        self.out = nn.Conv2d(channels, y.shape[1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the block."""
        y = self.block(x)
        inner = self.out(torch.relu(self.conv(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False))))
        factors = [-(-a // b) for a, b in zip(y.shape[2:], inner.shape[2:], strict=True)]
        branch = inner.repeat_interleave(factors[0], 2).repeat_interleave(factors[1], 3)
        return y + branch[:, :, : y.shape[2], : y.shape[3]]


def with_lite_residuals(net: nn.Module, x: Tensor, drop: float = 0.0) -> nn.Module | None:
    """A copy of ``net`` with a branch beside all blocks but the first share of them; None for one without such blocks."""
    net = copy.deepcopy(net)
    paths = [path for path, module in net.named_modules() if isinstance(module, BLOCKS)]
    shapes: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        net.get_submodule(path).register_forward_hook(
            lambda module, inputs, output, path=path: shapes.__setitem__(path, (inputs[0], output))
        )
        for path in paths
    ]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    kept = paths[math.floor(len(paths) * drop) :]
    for path in kept:
        net.set_submodule(path, WithLiteResidual(net.get_submodule(path), *shapes[path]))
    return net if kept else None
