"""MobileNetV2 at any width.

Structure: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2. At
width 0.35 (TinyTrain's backbone): 17 blocks, 52 convolutions, 288,864 convolution weights, 17.45 M
multiply-accumulates at 128×128.

Two widths of the last 1×1 convolution are in use below width 1: the original keeps 1,280 channels,
TinyTrain's cost table scales it (448 at 0.35). This one scales, at every width.
"""

from __future__ import annotations

from tvm_tinytrain.errors import ShapeError
from tvm_tinytrain.models.blocks import Backbone, BackboneSpec, BlockSpec

_STAGES = (  # expansion, channels at width 1, blocks, stride of the first
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, at least one, never more than 10 % below `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def mobilenet_v2_spec(width: float, *, feature_mix: bool = True) -> BackboneSpec:
    """Structure at multiplier `width` > 0; without `feature_mix` the last 1×1 convolution is left out."""
    if not width > 0:
        raise ShapeError(
            "models", "MobileNetV2 width", width, "a number above 0", "the paper uses 0.35 and 1.0"
        )
    stem = round_channels(32 * width)
    blocks = [BlockSpec(stem, stem, round_channels(16 * width), 3, 1)]
    for expansion, channels, count, stride in _STAGES:
        for index in range(count):
            source = blocks[-1].out_channels
            step = stride if index == 0 else 1
            blocks.append(BlockSpec(source, source * expansion, round_channels(channels * width), 3, step))
    mix = round_channels(1280 * width) if feature_mix else None
    return BackboneSpec(f"mobilenet-v2-w{width:g}", stem, tuple(blocks), mix)


def mobilenet_v2(
    width: float = 0.35, *, num_classes: int | None = None, fused: bool = False, feature_mix: bool = True
) -> Backbone:
    """MobileNetV2 with random weights; features [N, 448] at width 0.35 or [N, 1280] at 1.0, or logits."""
    return Backbone(mobilenet_v2_spec(width, feature_mix=feature_mix), num_classes=num_classes, fused=fused)
