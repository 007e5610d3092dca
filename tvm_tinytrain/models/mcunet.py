"""MCUNet-5fps: the largest network that MCUNet's search found for five frames a second on a Cortex-M7.

Structure: Lin et al., "MCUNet: Tiny Deep Learning on IoT Devices", NeurIPS 2020; the variant that TinyTrain
(Kwon et al., ICML 2024, Table 4) and MIT's on-device training (Lin et al., NeurIPS 2022) adapt. 14 blocks, 42
convolutions, 463,216 convolution weights, 22.45 M multiply-accumulates at 128×128; no feature mix: 160
features.
"""

from __future__ import annotations

from tvm_tinytrain.models.blocks import Backbone, BackboneSpec, BlockSpec, chain_blocks

_ROWS = (  # hidden, out channels, kernel, stride
    (32, 16, 3, 2),
    (48, 16, 3, 1),
    (48, 24, 7, 2),
    (120, 24, 3, 1),
    (120, 40, 3, 2),
    (160, 40, 7, 1),
    (160, 48, 5, 1),
    (144, 48, 3, 1),
    (192, 48, 3, 1),
    (240, 96, 7, 2),
    (384, 96, 5, 1),
    (384, 96, 5, 1),
    (576, 160, 3, 1),
)

MCUNET_5FPS = BackboneSpec("mcunet-5fps", 16, chain_blocks(BlockSpec(16, 16, 8, 3, 1), _ROWS), None)


def mcunet(*, num_classes: int | None = None, fused: bool = False) -> Backbone:
    """MCUNet-5fps with random weights; features [N, 160], or logits [N, num_classes]."""
    return Backbone(MCUNET_5FPS, num_classes=num_classes, fused=fused)
