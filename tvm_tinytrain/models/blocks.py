"""Building blocks of the mobile backbones: convolution units, inverted bottlenecks, the backbone itself.

A backbone exists in two forms with the same layer names. The *training* form has a batch norm after every
convolution (convolutions carry no bias). The *fused* form has the statistics folded into the convolution,
which then has a bias: this is the form that the compiler trains on a device, and `fuse` makes it from the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tvm_tinytrain.errors import ShapeError


@dataclass(frozen=True)
class BlockSpec:
    """One inverted bottleneck: expand 1×1 → depthwise kernel×kernel → project 1×1.

    `hidden` equals `in_channels` where the block has no expansion (the first block of every backbone here).
    The skip connection exists exactly where shape allows it: stride 1 and as many channels out as in.
    """

    in_channels: int
    hidden: int
    out_channels: int
    kernel: int
    stride: int

    @property
    def expands(self) -> bool:
        """Whether the block begins with a 1×1 convolution."""
        return self.hidden != self.in_channels

    @property
    def skips(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclass(frozen=True)
class BackboneSpec:
    """What a backbone is made of; `mix_channels` is the width of the final 1×1 convolution, or None."""

    name: str
    stem_channels: int
    blocks: tuple[BlockSpec, ...]
    mix_channels: int | None

    @property
    def feature_width(self) -> int:
        """Channels that leave the last convolution."""
        return self.mix_channels if self.mix_channels is not None else self.blocks[-1].out_channels

    @property
    def num_layers(self) -> int:
        """Convolutions, the paper's count of layers."""
        return 1 + sum(3 if block.expands else 2 for block in self.blocks) + (self.mix_channels is not None)


def chain_blocks(first: BlockSpec, rows: Sequence[tuple[int, int, int, int]]) -> tuple[BlockSpec, ...]:
    """Blocks from rows (hidden, out_channels, kernel, stride); each takes what the one before gives."""
    blocks = [first]
    for hidden, out_channels, kernel, stride in rows:
        blocks.append(BlockSpec(blocks[-1].out_channels, hidden, out_channels, kernel, stride))
    return tuple(blocks)


class ConvUnit(nn.Module):
    """Convolution, batch norm unless fused, ReLU6 unless linear. Padding is kernel // 2 on all sides.

    Input float32 [N, in_channels, H, W]; output float32 [N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=fused
        )
        self.norm = None if fused else nn.BatchNorm2d(out_channels)
        self.act = None if linear else nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] → [N, out_channels, H', W']."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.act is None else self.act(x)


class InvertedBottleneck(nn.Module):
    """`BlockSpec` as a module: [N, in_channels, H, W] → [N, out_channels, ⌈H / stride⌉, ⌈W / stride⌉]."""

    def __init__(self, spec: BlockSpec, *, fused: bool = False) -> None:
        super().__init__()
        self.spec = spec
        hidden = spec.hidden
        self.expand = ConvUnit(spec.in_channels, hidden, 1, fused=fused) if spec.expands else None
        self.depthwise = ConvUnit(hidden, hidden, spec.kernel, stride=spec.stride, groups=hidden, fused=fused)
        self.project = ConvUnit(hidden, spec.out_channels, 1, linear=True, fused=fused)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] → [N, out_channels, H', W']."""
        y = x if self.expand is None else self.expand(x)
        y = self.depthwise(y)
        y = self.project(y)
        return x + y if self.spec.skips else y


class Backbone(nn.Module):
    """Stem, blocks, optional feature mix, global average pool, optional linear head.

    Input float32 [N, 3, H, W], any H and W (the strides multiply to 32); the usual range is [-1, 1]. Output
    float32 [N, spec.feature_width] without a head (features, for ProtoNet), else [N, num_classes] logits.
    """

    def __init__(self, spec: BackboneSpec, *, num_classes: int | None = None, fused: bool = False) -> None:
        super().__init__()
        if num_classes is not None and num_classes < 1:
            raise ShapeError(
                "models",
                f"{spec.name} num_classes",
                num_classes,
                "a positive integer or None",
                "None gives features",
            )
        self.spec = spec
        self.fused = fused
        self.stem = ConvUnit(3, spec.stem_channels, 3, stride=2, fused=fused)
        self.blocks = nn.ModuleList(InvertedBottleneck(block, fused=fused) for block in spec.blocks)
        last = spec.blocks[-1].out_channels
        self.mix = None if spec.mix_channels is None else ConvUnit(last, spec.mix_channels, 1, fused=fused)
        self.head = None if num_classes is None else nn.Linear(spec.feature_width, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """Pooled features, float32 [N, spec.feature_width]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if self.mix is not None:
            x = self.mix(x)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] → features or logits."""
        x = self.features(x)
        return x if self.head is None else self.head(x)

    def conv_units(self) -> list[ConvUnit]:
        """Convolution units in the order of execution: entry i is layer i of the paper and of MIT."""
        units = [self.stem]
        for block in self.blocks:
            assert isinstance(block, InvertedBottleneck)
            units += [unit for unit in (block.expand, block.depthwise, block.project) if unit is not None]
        return units if self.mix is None else [*units, self.mix]


def initialise(model: nn.Module) -> None:
    """He initialisation of the convolutions by fan-out; a small normal for linear layers; biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def fuse(model: Backbone) -> Backbone:
    """The fused twin of a backbone in its training form: a copy in eval mode, equal up to rounding.

    w' = w · γ / √(σ² + ε) and b' = β − μ · γ / √(σ² + ε), per output channel, computed in float64.
    """
    classes = None if model.head is None else model.head.out_features
    twin = Backbone(model.spec, num_classes=classes, fused=True)
    for unit, target in zip(model.conv_units(), twin.conv_units(), strict=True):
        norm, bias = unit.norm, target.conv.bias
        assert bias is not None
        if norm is None:
            target.load_state_dict(unit.state_dict())
            continue
        assert norm.running_var is not None and norm.running_mean is not None
        scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        target.conv.weight.copy_(unit.conv.weight.double() * scale[:, None, None, None])
        bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)
    if model.head is not None and twin.head is not None:
        twin.head.load_state_dict(model.head.state_dict())
    return twin.eval()
