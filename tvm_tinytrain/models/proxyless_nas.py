"""ProxylessNASNet (mobile) at width 0.3.

Structure: Cai et al., "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR
2019, as TinyTrain (Kwon et al., ICML 2024, Table 4) uses it: 20 blocks, 61 convolutions, 357,680 convolution
weights, 19.21 M multiply-accumulates at 128×128, 384 features.
"""

from __future__ import annotations

from dataclasses import replace

from tvm_tinytrain.models.blocks import Backbone, BackboneSpec, BlockSpec, chain_blocks

_ROWS = (  # hidden, out channels, kernel, stride
    (24, 16, 5, 2),
    (48, 16, 3, 1),
    (48, 16, 7, 2),
    (48, 16, 3, 1),
    (48, 16, 5, 1),
    (48, 16, 5, 1),
    (96, 24, 7, 2),
    (72, 24, 5, 1),
    (72, 24, 5, 1),
    (72, 24, 5, 1),
    (144, 32, 5, 1),
    (96, 32, 5, 1),
    (96, 32, 5, 1),
    (96, 32, 5, 1),
    (192, 64, 7, 2),
    (384, 64, 7, 1),
    (192, 64, 7, 1),
    (192, 64, 7, 1),
    (384, 96, 7, 1),
)

PROXYLESS_NAS_03 = BackboneSpec(
    "proxyless-nas-w0.3", 16, chain_blocks(BlockSpec(16, 16, 8, 3, 1), _ROWS), 384
)


def proxyless_nas(
    *, num_classes: int | None = None, fused: bool = False, feature_mix: bool = True
) -> Backbone:
    """ProxylessNASNet-0.3 with random weights; features [N, 384] ([N, 96] without the mix), or logits."""
    spec = PROXYLESS_NAS_03 if feature_mix else replace(PROXYLESS_NAS_03, mix_channels=None)
    return Backbone(spec, num_classes=num_classes, fused=fused)
