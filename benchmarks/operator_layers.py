"""Cases for the layers of networks and for their blocks: convolutions, products, normalisations, pools, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.operator_probe import IMAGE, SERIES, TOKENS, VECTOR, OperatorCase, Shape, case, fn


class Turned(nn.Module):
    """The last two axes swapped: strided, for which the exporter writes other products."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class NormOfTokens(nn.BatchNorm1d):
    """Batch norm of each feature of tokens, as LeViT writes it behind its linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).reshape_as(x)


def convolutions() -> Iterator[OperatorCase]:
    """conv2d of all kinds, conv1d, with and without bias and clamp."""
    specs: dict[str, tuple[tuple[Any, ...], dict[str, Any], Shape]] = {
        "1x1": ((4, 6, 1), {}, IMAGE),
        "1x1 no bias": ((4, 6, 1), {"bias": False}, IMAGE),
        "1x1 stride 2": ((4, 6, 1, 2), {}, IMAGE),
        "3x3": ((3, 5, 3), {}, (1, 3, 7, 6)),
        "3x3 padded": ((3, 5, 3, 1, 1), {}, (1, 3, 7, 6)),
        "3x3 stride 2": ((3, 5, 3, 2, 1), {}, (1, 3, 8, 7)),
        "3x3 stride 3": ((3, 4, 3, 3), {}, (1, 3, 9, 10)),
        "3x3 stride (2, 1)": ((3, 4, 3, (2, 1), 1), {}, (1, 3, 8, 5)),
        "3x3 stride 2, rows left over": ((2, 3, 3, 2), {}, (1, 2, 8, 8)),
        "3x3 dilated": ((3, 4, 3, 1, 2, 2), {}, (1, 3, 8, 8)),
        "3x3 dilated, stride 2": ((3, 4, 3, 2, 2, 2), {}, (1, 3, 9, 8)),
        "3x3 dilated (1, 2)": ((3, 4, 3, 1, 0, (1, 2)), {}, (1, 3, 6, 8)),
        "5x5 padded": ((2, 3, 5, 1, 2), {}, (1, 2, 7, 7)),
        "7x7 stride 2": ((2, 3, 7, 2, 3), {}, (1, 2, 9, 9)),
        "2x2": ((2, 3, 2), {}, (1, 2, 5, 5)),
        "1x5": ((2, 3, (1, 5), 1, (0, 2)), {}, (1, 2, 4, 8)),
        "5x3 padded (2, 0)": ((2, 3, (5, 3), 1, (2, 0)), {}, (1, 2, 6, 6)),
        "padding wider than kernel": ((2, 3, 1, 1, 1), {}, (1, 2, 4, 4)),
        "kernel of the input's size": ((3, 8, (4, 5)), {}, (1, 3, 4, 5)),
        "padding same": ((2, 3, (3, 4)), {"padding": "same"}, (1, 2, 5, 6)),
        "replicated border": ((2, 3, 3, 1, 1), {"padding_mode": "replicate"}, (1, 2, 5, 5)),
        "reflected border": ((2, 3, 3, 1, 1), {"padding_mode": "reflect"}, (1, 2, 5, 5)),
        "2 groups": ((4, 6, 3, 1, 1), {"groups": 2}, IMAGE),
        "2 groups, stride 2": ((4, 6, 3, 2, 1), {"groups": 2}, IMAGE),
        "4 groups of 1 to 2": ((4, 8, 3, 1, 1), {"groups": 4}, IMAGE),
        "3 groups, dilated": ((6, 3, 3, 1, 2, 2), {"groups": 3}, (1, 6, 7, 7)),
        "depthwise 3x3": ((4, 4, 3, 1, 1), {"groups": 4}, IMAGE),
        "depthwise 3x3 stride 2": ((4, 4, 3, 2, 1), {"groups": 4}, IMAGE),
        "depthwise 5x5": ((4, 4, 5, 1, 2), {"groups": 4}, IMAGE),
        "depthwise 5x5 stride 2": ((4, 4, 5, 2, 2), {"groups": 4}, (1, 4, 9, 8)),
        "depthwise 7x7": ((4, 4, 7, 1, 3), {"groups": 4}, (1, 4, 8, 8)),
        "depthwise 7x7 stride 2": ((4, 4, 7, 2, 3), {"groups": 4}, (1, 4, 9, 9)),
        "depthwise dilated": ((4, 4, 3, 1, 2, 2), {"groups": 4}, (1, 4, 7, 7)),
    }
    for name, (args, options, shape) in specs.items():
        yield case(f"conv2d {name}", lambda a=args, o=options: nn.Conv2d(*a, **o), shape)
    for name, act in (("relu", nn.ReLU), ("relu6", nn.ReLU6), ("hardtanh", nn.Hardtanh)):
        yield case(
            f"conv2d + {name}", lambda a=act: nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), a()), (1, 3, 6, 6)
        )
        yield case(
            f"depthwise + {name}",
            lambda a=act: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4), a()),
            IMAGE,
        )
    rows: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "kernel 1": ((4, 6, 1), {}),
        "kernel 3": ((4, 6, 3), {}),
        "kernel 5, stride 2": ((4, 6, 5, 2, 2), {}),
        "kernel 3, dilated": ((4, 6, 3, 1, 2, 2), {}),
        "2 groups": ((4, 6, 3, 1, 1), {"groups": 2}),
        "depthwise": ((4, 4, 5, 1, 2), {"groups": 4, "bias": False}),
    }
    for name, (args, options) in rows.items():
        yield case(f"conv1d {name}", lambda a=args, o=options: nn.Conv1d(*a, **o), SERIES)
    yield case("conv1d + relu", lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU()), SERIES)
    yield case(
        "conv2d used twice",
        fn(lambda x, weight: F.conv2d(torch.tanh(F.conv2d(x, weight)), weight), weight=(4, 4, 1, 1)),
        IMAGE,
    )


def transposed_convolutions() -> Iterator[OperatorCase]:
    """conv_transpose2d and conv_transpose1d as trainable layers."""
    specs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "3x3": ((4, 3, 3), {}),
        "3x3 no bias": ((4, 3, 3, 1, 1), {"bias": False}),
        "2x2 stride 2": ((4, 3, 2, 2), {}),
        "3x3 stride 2, output padding": ((4, 3, 3, 2, 1, 1), {}),
        "4x4 stride 2": ((4, 3, 4, 2, 1), {}),
        "3x3 stride 3, dilated": ((4, 3, 3, 3, 0, 0, 1, True, 2), {}),
        "2 groups": ((4, 6, 3, 2, 1), {"groups": 2}),
        "depthwise": ((4, 4, 3, 2, 1), {"groups": 4}),
        "(3, 2) stride (1, 2)": ((4, 3, (3, 2), (1, 2)), {}),
    }
    for name, (args, options) in specs.items():
        yield case(f"conv_transpose2d {name}", lambda a=args, o=options: nn.ConvTranspose2d(*a, **o), IMAGE)
    yield case(
        "conv_transpose2d + relu", lambda: nn.Sequential(nn.ConvTranspose2d(4, 3, 3, 2), nn.ReLU()), IMAGE
    )
    yield case("conv_transpose1d", lambda: nn.ConvTranspose1d(4, 3, 4, 2, 1), SERIES)
    yield case("conv_transpose1d 2 groups", lambda: nn.ConvTranspose1d(4, 6, 3, 1, 1, groups=2), SERIES)


def products() -> Iterator[OperatorCase]:
    """Linear layers and products of activations."""
    yield case("linear", lambda: nn.Linear(12, 7), VECTOR)
    yield case("linear no bias", lambda: nn.Linear(12, 7, bias=False), VECTOR)
    yield case("linear to one", lambda: nn.Linear(12, 1), VECTOR)
    yield case("linear + relu", lambda: nn.Sequential(nn.Linear(12, 7), nn.ReLU()), VECTOR)
    yield case("linear over tokens", lambda: nn.Linear(8, 6), TOKENS)
    yield case("linear over channels", lambda: nn.Sequential(Turned(), nn.Linear(5, 6), Turned()), TOKENS)
    yield case("linear over channels of a batch", lambda: nn.Sequential(Turned(), nn.Linear(5, 6)), (3, 5, 4))
    yield case("weight per sample", fn(lambda x, w: torch.bmm(x, w.expand(3, 4, 6)), w=(4, 6)), (3, 5, 4))
    yield case("turned weight per sample", fn(lambda x, w: x @ w.expand(3, 6, 4).mT, w=(6, 4)), (3, 5, 4))
    yield case("sample per weight", fn(lambda x, w: x @ w.repeat(3, 1, 1), w=(4, 6)), (1, 5, 4))
    yield case("matmul with a parameter", fn(lambda x, weight: x @ weight, weight=(12, 7)), VECTOR)
    yield case("parameter from the left", fn(lambda x, weight: weight @ x, weight=(7, 5)), TOKENS)
    yield case("matmul of two activations", fn(torch.matmul), (1, 5, 8), (1, 8, 3))
    yield case("matmul, right transposed", fn(lambda a, b: a @ b.mT), (2, 5, 8), (2, 3, 8))
    yield case("matmul, left transposed", fn(lambda a, b: a.mT @ b), (2, 8, 5), (2, 8, 3))
    yield case("matmul, both transposed", fn(lambda a, b: a.mT @ b.mT), (2, 8, 5), (2, 3, 8))
    yield case("matmul with itself", fn(lambda x: x @ x.mT), TOKENS)
    yield case("matmul of heads", fn(lambda a, b: a @ b.mT), (1, 2, 5, 4), (1, 2, 3, 4))
    yield case("matmul, right broadcast", fn(torch.matmul), (3, 5, 4), (1, 4, 2))
    yield case("matmul, left broadcast", fn(torch.matmul), (1, 5, 4), (3, 4, 2))
    yield case("matmul, crosswise broadcast", fn(torch.matmul), (2, 1, 3, 4), (1, 3, 4, 2))
    yield case("matrix times vector", fn(lambda a, v: a @ v.reshape(-1)), (5, 8), (1, 8))
    yield case("bmm", fn(lambda a, b: torch.bmm(a, b)), (3, 2, 4), (3, 4, 5))
    yield case(
        "einsum of heads", fn(lambda a, b: torch.einsum("bqhd,bkhd->bhqk", a, b)), (1, 3, 2, 4), (1, 5, 2, 4)
    )
    yield case("bias of channels", fn(lambda x, bias: x + bias.reshape(1, -1, 1, 1), bias=(4,)), IMAGE)
    yield case("bias of features", fn(lambda x, bias: x + bias, bias=(12,)), VECTOR)


def normalisations() -> Iterator[OperatorCase]:
    """Batch norm in evaluation mode, layer, group and instance norm, each with its affine parameters trained."""
    yield case(
        "conv + batch norm", lambda: nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), IMAGE
    )
    yield case(
        "conv with bias + batch norm + relu",
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        IMAGE,
    )
    yield case(
        "depthwise + batch norm",
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(4)),
        IMAGE,
    )
    yield case("conv1d + batch norm", lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), SERIES)
    yield case("linear + batch norm", lambda: nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5)), VECTOR)
    yield case("batch norm alone", lambda: nn.BatchNorm2d(4), IMAGE)
    yield case("batch norm of a vector", lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm1d(12)), VECTOR)
    yield case("batch norm of a batch", lambda: nn.BatchNorm2d(4), (3, 4, 3, 2))
    yield case(
        "batch norm of tokens", lambda: nn.Sequential(nn.Linear(8, 6, bias=False), NormOfTokens(6)), TOKENS
    )
    yield case("group norm of a batch", lambda: nn.GroupNorm(2, 4), (3, 4, 3, 2))
    yield case("batch norm without affine", lambda: nn.BatchNorm2d(4, affine=False), IMAGE)
    yield case("relu + batch norm", lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), IMAGE)
    yield case("layer norm", lambda: nn.LayerNorm(8), TOKENS)
    yield case("layer norm over three axes", lambda: nn.LayerNorm([4, 6, 5]), IMAGE)
    yield case("layer norm without affine", lambda: nn.LayerNorm(8, elementwise_affine=False), TOKENS)
    yield case("layer norm far from zero", lambda: nn.LayerNorm(8), TOKENS, domain=(10.0, 14.0))
    yield case("group norm", lambda: nn.GroupNorm(2, 4), IMAGE)
    yield case("group norm, one group", lambda: nn.GroupNorm(1, 4), IMAGE)
    yield case("group norm of a series", lambda: nn.GroupNorm(2, 4), SERIES)
    yield case("instance norm", lambda: nn.InstanceNorm2d(4, affine=True), IMAGE)
    yield case("rms norm", lambda: nn.RMSNorm(8), TOKENS)
    yield case("l2 norm of channels", fn(lambda x: F.normalize(x, dim=1)), IMAGE)


def pools() -> Iterator[OperatorCase]:
    """Max and average pooling, adaptive too."""
    image = (1, 3, 8, 7)
    modules: dict[str, Callable[[], nn.Module]] = {
        "max pool 2": lambda: nn.MaxPool2d(2),
        "max pool 3, stride 2, padded": lambda: nn.MaxPool2d(3, 2, 1),
        "max pool 3, overlapping": lambda: nn.MaxPool2d(3, 1),
        "max pool 2, ceil mode": lambda: nn.MaxPool2d(2, ceil_mode=True),
        "max pool, dilated": lambda: nn.MaxPool2d(2, 1, 0, 2),
        "max pool (3, 1)": lambda: nn.MaxPool2d((3, 1)),
        "avg pool 2": lambda: nn.AvgPool2d(2),
        "avg pool 3, stride 2, padded": lambda: nn.AvgPool2d(3, 2, 1),
        "avg pool 3, padding not counted": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        "avg pool 3, padded rows": lambda: nn.AvgPool2d(3, 1, (1, 0)),
        "avg pool 3, padded columns": lambda: nn.AvgPool2d(3, 2, (0, 1)),
        "avg pool 3, overlapping": lambda: nn.AvgPool2d(3, 1),
        "avg pool 2, ceil mode": lambda: nn.AvgPool2d(2, ceil_mode=True),
        "avg pool 3, ceil mode, padded": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        "avg pool of everything": lambda: nn.AvgPool2d((8, 7)),
        "adaptive avg pool to 1": lambda: nn.AdaptiveAvgPool2d(1),
        "adaptive avg pool to (4, 1)": lambda: nn.AdaptiveAvgPool2d((4, 1)),
        "adaptive avg pool to (3, 5)": lambda: nn.AdaptiveAvgPool2d((3, 5)),
        "adaptive avg pool upwards": lambda: nn.AdaptiveAvgPool2d((9, 7)),
        "adaptive max pool to 1": lambda: nn.AdaptiveMaxPool2d(1),
        "adaptive max pool to (4, 7)": lambda: nn.AdaptiveMaxPool2d((4, None)),
        "adaptive max pool to (3, 5)": lambda: nn.AdaptiveMaxPool2d((3, 5)),
        "adaptive max pool upwards": lambda: nn.AdaptiveMaxPool2d((9, 7)),
    }
    for name, make in modules.items():
        yield case(name, make, image)
    for name in ("max pool 2", "avg pool 3, stride 2, padded", "adaptive avg pool to (3, 5)"):
        yield case(f"{name}, of a batch", modules[name], (3, 2, 6, 4))
    yield case("max pool 1d of a batch", lambda: nn.MaxPool1d(2), (3, 2, 5))
    yield case("adaptive avg pool 1d to 3, of a batch", lambda: nn.AdaptiveAvgPool1d(3), (3, 2, 5))
    yield case(
        "adaptive max pool of ties",
        fn(lambda x: F.adaptive_max_pool2d(torch.cat([x, x.detach()], 3), (3, 1))),
        image,
    )
    yield case("max pool 1d", lambda: nn.MaxPool1d(3, 2, 1), SERIES)
    yield case("avg pool 1d", lambda: nn.AvgPool1d(2), SERIES)
    yield case("adaptive avg pool 1d to 1", lambda: nn.AdaptiveAvgPool1d(1), SERIES)
    yield case("adaptive avg pool 1d to 3", lambda: nn.AdaptiveAvgPool1d(3), SERIES)
    yield case("adaptive max pool 1d to 1", lambda: nn.AdaptiveMaxPool1d(1), SERIES)
    yield case("adaptive max pool 1d to 3", lambda: nn.AdaptiveMaxPool1d(3), SERIES)


class SqueezeExcite(nn.Module):
    """x · hardsigmoid(W₂ relu(W₁ mean(x)))."""

    def __init__(self, channels: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        """[1, C, H, W] → [1, C, H, W]."""
        return x * self.gate(self.expand(torch.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project with batch norms, and a skip."""

    def __init__(self, channels: int, hidden: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), act(),
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), act(),
            nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[1, C, H, W] → [1, C, H, W]."""
        return x + self.body(x)


class Attention(nn.Module):
    """Two-headed self-attention, written out or by PyTorch's fused operator."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), fused

    def forward(self, x: Tensor) -> Tensor:
        """[1, tokens, width] → [1, tokens, width]."""
        _, tokens, width = x.shape
        q, k, v = (t.reshape(1, tokens, 2, width // 2).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.mT / math.sqrt(width // 2), -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(1, tokens, width))


class MaskedAttention(nn.Module):
    """Self-attention without weights; the mask of [tokens, tokens], kept for more of them, is −∞ where one must not look."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(mask.shape).masked_fill(mask, -math.inf))

    def forward(self, x: Tensor) -> Tensor:
        """[1, tokens, width] → [1, tokens, width]."""
        mask = self.get_buffer("mask")[: x.shape[1], : x.shape[1]]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def masks() -> Iterator[OperatorCase]:
    """Attention that must not look everywhere."""

    def written_out(x: Tensor) -> Tensor:
        later = torch.ones(x.shape[1], x.shape[1]).triu(1)
        return (x @ x.transpose(1, 2)).masked_fill(later.bool(), -math.inf).softmax(-1) @ x

    def added(x: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2) + torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)).softmax(
            -1
        ) @ x

    causal = fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    yield case("causal attention", causal, TOKENS)
    yield case("causal attention of 70 tokens", causal, (1, 70, 2))
    yield case("causal attention, mask filled in", fn(written_out), TOKENS)
    yield case("causal attention, mask added", fn(added), TOKENS)
    yield case(
        "attention by truth values",
        fn(lambda x: F.scaled_dot_product_attention(x, x, x, torch.ones(5, 5).tril(1).bool())),
        TOKENS,
    )
    later = torch.ones(7, 7).triu(1).bool()
    yield case("attention, part of a mask", lambda: MaskedAttention(later), TOKENS)
    row = later | (torch.arange(7) == 2)[:, None]
    yield case("attention, a token that sees nothing", lambda: MaskedAttention(row), TOKENS)


def blocks() -> Iterator[OperatorCase]:
    """Fan-out and the blocks of real networks."""
    yield case("skip used three times", fn(lambda x: (y := torch.tanh(x)) * y + y.exp() + y), IMAGE)
    yield case(
        "three branches",
        fn(lambda x, weight: F.conv2d(x, weight) + F.conv2d(torch.relu(x), weight) * x, weight=(4, 4, 1, 1)),
        IMAGE,
    )
    yield case("squeeze and excite, hardsigmoid", lambda: SqueezeExcite(4, nn.Hardsigmoid), IMAGE)
    yield case("squeeze and excite, sigmoid", lambda: SqueezeExcite(4, nn.Sigmoid), IMAGE)
    for act in (nn.ReLU6, nn.Hardswish, nn.SiLU):
        yield case(f"inverted residual, {act.__name__}", lambda a=act: InvertedResidual(4, 8, a), IMAGE)
    yield case(
        "feed-forward block",
        lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        TOKENS,
    )
    yield case("attention", lambda: Attention(8, fused=False), TOKENS)
    yield case("attention, fused", lambda: Attention(8, fused=True), TOKENS)
