"""A zoo of small networks for gradient tests: other people's structures, our code, random weights, eval mode.

Inputs are smaller than the originals' where a network allows it (it ends in a global pool), because what is
tested is the graph: MobileNetV3, EfficientNet-Lite and SqueezeNet take 64×64 instead of 224×224, the
backbones 64×64 instead of 128×128. The networks of MLPerf Tiny have their own sizes. Batch is 1.
`zoo()["name"].make()` is reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tvm_tinytrain.models import Backbone, BackboneSpec, BlockSpec, mcunet, mobilenet_v2, proxyless_nas

NUM_CLASSES = 10
REGRESSION = frozenset({"autoencoder"})
"""Networks to train with a mean squared error against their own input; all others give logits."""


class Network(NamedTuple):
    """`make` gives a fresh module in eval mode, always the same; `input_shape` is float32, with batch 1."""

    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]


def zoo() -> dict[str, Network]:
    """All networks by name, in a fixed order."""
    structures: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "mcunet": (partial(mcunet, num_classes=NUM_CLASSES), (1, 3, 64, 64)),
        "mobilenet_v2_035": (partial(mobilenet_v2, 0.35, num_classes=NUM_CLASSES), (1, 3, 64, 64)),
        "mobilenet_v2_100": (partial(mobilenet_v2, 1.0, num_classes=NUM_CLASSES), (1, 3, 64, 64)),
        "proxyless_nas_03": (partial(proxyless_nas, num_classes=NUM_CLASSES), (1, 3, 64, 64)),
        "resnet8": (ResNet8, (1, 3, 32, 32)),
        "ds_cnn": (DsCnn, (1, 1, 49, 10)),
        "mobilenet_v1_025": (MobileNetV1Quarter, (1, 3, 96, 96)),
        "autoencoder": (Autoencoder, (1, 640)),
        "mobilenet_v3_small": (MobileNetV3Small, (1, 3, 64, 64)),
        "efficientnet_lite0": (partial(efficientnet_lite0, num_classes=NUM_CLASSES), (1, 3, 64, 64)),
        "squeezenet": (SqueezeNet, (1, 3, 64, 64)),
        "cnn_1d": (Cnn1d, (1, 6, 128)),
    }
    return {name: Network(partial(_seeded, make, shape), shape) for name, (make, shape) in structures.items()}


def _seeded(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        _initialise(model)
        randomise_batch_norm(model, torch.randn(16, *shape[1:]))
    return model.eval()


def _initialise(model: nn.Module) -> None:
    """He initialisation by fan-in; biases random too, so that no gradient is zero by accident."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)


@torch.no_grad()
def randomise_batch_norm(model: nn.Module, samples: Tensor) -> None:
    """Give every batch norm a random affine and the statistics that `samples` [N, ...] cause at its input.

    So no channel is dead or saturated by accident, and nothing in the network is an identity. Draws from
    PyTorch's global generator; leaves the model in eval mode.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
        norm.momentum = 1.0  # the running statistics become those of the one batch
    model.train()
    model(samples)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    act: Callable[[], nn.Module] | None = nn.ReLU,
    bias: bool = False,
) -> nn.Sequential:
    """Convolution with padding kernel // 2, batch norm, activation; MLPerf Tiny adds a bias to each."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([] if act is None else [act()]))


class ResNet8(nn.Module):
    """MLPerf Tiny image classification: three residual stacks on CIFAR-10's 3×32×32."""

    class Stack(nn.Module):
        """Two 3×3 convolutions and a skip, which is a bare 1×1 convolution where the shape changes."""

        def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
            super().__init__()
            self.first = conv_norm(in_channels, out_channels, 3, stride, bias=True)
            self.second = conv_norm(out_channels, out_channels, 3, act=None, bias=True)
            self.skip = nn.Identity() if stride == 1 else nn.Conv2d(in_channels, out_channels, 1, stride)

        def forward(self, x: Tensor) -> Tensor:
            """[N, in_channels, H, W] → [N, out_channels, H / stride, W / stride]."""
            return torch.relu(self.skip(x) + self.second(self.first(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, 3, bias=True)
        self.stacks = nn.Sequential(self.Stack(16, 16, 1), self.Stack(16, 32, 2), self.Stack(32, 64, 2))
        self.pool = nn.AvgPool2d(8)
        self.head = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] → logits."""
        return self.head(self.pool(self.stacks(self.stem(x))).flatten(1))


class DsCnn(nn.Module):
    """MLPerf Tiny keyword spotting: four depthwise-separable convolutions on 49 frames of 10 MFCCs."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((1, 1, 4, 5))  # "same" of a 10×4 kernel with stride 2
        self.stem = nn.Sequential(
            nn.Conv2d(1, 64, (10, 4), 2), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.2)
        )
        separable = [
            layer
            for _ in range(4)
            for layer in (conv_norm(64, 64, 3, groups=64, bias=True), conv_norm(64, 64, 1, bias=True))
        ]
        self.body = nn.Sequential(*separable)
        self.drop = nn.Dropout(0.4)
        self.pool = nn.AvgPool2d((25, 5))
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 49, 10] → logits."""
        x = self.drop(self.body(self.stem(self.pad(x))))
        return self.head(self.pool(x).flatten(1))


class MobileNetV1Quarter(nn.Module):
    """MLPerf Tiny visual wake words: MobileNetV1 at width 0.25 on 3×96×96, person or not."""

    _ROWS = (
        (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2),
        (128, 1), (128, 1), (128, 1), (128, 1), (128, 1), (256, 2), (256, 1),
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        layers = [conv_norm(3, 8, 3, 2, bias=True)]
        channels = 8
        for out_channels, stride in self._ROWS:
            layers.append(conv_norm(channels, channels, 3, stride, groups=channels, bias=True))
            layers.append(conv_norm(channels, out_channels, 1, bias=True))
            channels = out_channels
        self.body = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 96, 96] → logits."""
        return self.head(self.pool(self.body(x)).flatten(1))


class Autoencoder(nn.Sequential):
    """MLPerf Tiny anomaly detection: 640 → 4 × 128 → 8 → 4 × 128 → 640, batch norm and ReLU between."""

    def __init__(self) -> None:
        widths = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(128, 640))


class SqueezeExcite(nn.Module):
    """x · hardsigmoid(W₂ relu(W₁ mean(x))), one factor per channel."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, H, W]."""
        return x * self.gate(self.expand(torch.relu(self.reduce(self.pool(x)))))


class MobileNetV3Small(nn.Module):
    """Howard et al., "Searching for MobileNetV3", ICCV 2019, Table 2."""

    _ROWS = (  # kernel, hidden, out channels, squeeze-and-excite, hardswish, stride
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    )

    class Block(nn.Module):
        """Expand, depthwise, squeeze-and-excite, project; a skip where the shape stays."""

        def __init__(
            self, channels: int, kernel: int, hidden: int, out: int, excite: bool, swish: bool, stride: int
        ) -> None:
            super().__init__()
            act = nn.Hardswish if swish else nn.ReLU
            layers: list[nn.Module] = [] if hidden == channels else [conv_norm(channels, hidden, 1, act=act)]
            layers.append(conv_norm(hidden, hidden, kernel, stride, hidden, act))
            if excite:
                layers.append(SqueezeExcite(hidden, (hidden // 4 + 4) // 8 * 8))
            layers.append(conv_norm(hidden, out, 1, act=None))
            self.body = nn.Sequential(*layers)
            self.skips = stride == 1 and channels == out

        def forward(self, x: Tensor) -> Tensor:
            """[N, channels, H, W] → [N, out, ⌈H / stride⌉, ⌈W / stride⌉]."""
            return x + self.body(x) if self.skips else self.body(x)

    def __init__(self, classes: int = NUM_CLASSES) -> None:
        super().__init__()
        channels = 16
        layers: list[nn.Module] = [conv_norm(3, channels, 3, 2, act=nn.Hardswish)]
        for kernel, hidden, out, excite, swish, stride in self._ROWS:
            layers.append(self.Block(channels, kernel, hidden, out, excite, swish, stride))
            channels = out
        self.body = nn.Sequential(*layers, conv_norm(channels, 576, 1, act=nn.Hardswish))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] → logits."""
        return self.head(self.pool(self.body(x)).flatten(1))


def efficientnet_lite0(*, num_classes: int | None = None) -> Backbone:
    """EfficientNet-Lite0: B0 without squeeze-and-excite, with ReLU6 (TensorFlow TPU models, 2020)."""
    blocks = [BlockSpec(32, 32, 16, 3, 1)]
    stages = ((3, 2, 24, 2), (5, 2, 40, 2), (3, 2, 80, 3), (5, 1, 112, 3), (5, 2, 192, 4), (3, 1, 320, 1))
    for kernel, stride, channels, count in stages:
        for index in range(count):
            source = blocks[-1].out_channels
            blocks.append(BlockSpec(source, 6 * source, channels, kernel, stride if index == 0 else 1))
    return Backbone(BackboneSpec("efficientnet-lite0", 32, tuple(blocks), 1280), num_classes=num_classes)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al., 2016): no batch norm, two parallel convolutions concatenated."""

    class Fire(nn.Module):
        """1×1 squeeze, then 1×1 and 3×3 side by side; `expanded` channels each."""

        def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
            super().__init__()
            self.squeeze = nn.Conv2d(channels, squeezed, 1)
            self.narrow = nn.Conv2d(squeezed, expanded, 1)
            self.wide = nn.Conv2d(squeezed, expanded, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            """[N, channels, H, W] → [N, 2 · expanded, H, W]."""
            x = torch.relu(self.squeeze(x))
            return torch.cat([torch.relu(self.narrow(x)), torch.relu(self.wide(x))], dim=1)

    def __init__(self, classes: int = NUM_CLASSES) -> None:
        super().__init__()
        fire = self.Fire
        self.body = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            fire(64, 16, 64), fire(128, 16, 64), nn.MaxPool2d(3, 2),
            fire(128, 32, 128), fire(256, 32, 128), nn.MaxPool2d(3, 2),
            fire(256, 48, 192), fire(384, 48, 192), fire(384, 64, 256), fire(512, 64, 256),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] → logits."""
        return self.head(self.body(x)).flatten(1)


class Cnn1d(nn.Module):
    """Activity recognition from 6 inertial channels: strided, depthwise and dilated 1-D convolutions."""

    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(6, 16, 5, 2, 2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(16, 16, 5, padding=2, groups=16), nn.BatchNorm1d(16), nn.ReLU(),
            nn.Conv1d(16, 32, 1), nn.ReLU(),
            nn.Conv1d(32, 32, 3, padding=2, dilation=2), nn.BatchNorm1d(32), nn.ReLU(), nn.AvgPool1d(2),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(32 * 16, 32), nn.ReLU(), nn.Linear(32, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 6, 128] → logits."""
        return self.head(self.body(x).flatten(1))
