"""Small random convolutional networks for Hypothesis: every shape and stride that layers take, in any order."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.passes.networks import seeded

CLASSES = 3


class Residual(nn.Module):
    """x + inner(x), clamped or not."""

    def __init__(self, inner: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.inner(x))


class Mean(nn.Module):
    """The mean over rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean([2, 3])


ACTS = {"none": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6}


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor, int]:
    """A network in evaluation mode, an input, and a label."""
    channels, height, width = (draw(st.integers(*span)) for span in ((1, 4), (5, 10), (5, 10)))
    shape = (channels, height, width)
    plan: list[tuple[str, dict[str, Any]]] = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["conv", "conv", "residual", "max", "avg"]))
        if kind in ("max", "avg"):
            if height < 4 or width < 4 or not plan:
                continue
            k, stride = draw(st.integers(2, 3)), draw(st.integers(1, 2))
            padding = draw(st.integers(0, 1))
            plan.append((kind, {"kernel_size": k, "stride": stride, "padding": padding}))
            height, width = ((d + 2 * padding - k) // stride + 1 for d in (height, width))
            continue
        act, norm = draw(st.sampled_from(sorted(ACTS))), draw(st.booleans())
        if kind == "residual":
            groups = draw(st.sampled_from([1, channels]))
            options = {
                "in_channels": channels,
                "out_channels": channels,
                "kernel_size": 3,
                "padding": 1,
                "groups": groups,
            }
        else:
            options = draw(convolutions(channels, height, width))
            height, width = output_size(options, height, width)
            channels = options["out_channels"]
        plan.append((kind, {**options, "bias": draw(st.booleans()), "act": act, "norm": norm}))
    flatten = draw(st.booleans())
    features = channels * height * width if flatten else channels
    hidden = draw(st.sampled_from([None, 4, 7]))
    seed = draw(st.integers(0, 2**20))

    def make() -> nn.Module:
        layers = [block(kind, dict(options)) for kind, options in plan]
        layers.append(nn.Flatten() if flatten else Mean())
        if hidden:
            layers += [nn.Linear(features, hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden or features, CLASSES))

    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed + 1))
    return seeded(make, seed), x, draw(st.integers(0, CLASSES - 1))


@st.composite
def convolutions(draw: st.DrawFn, channels: int, height: int, width: int) -> dict[str, Any]:
    """Options of a Conv2d that fits an image of this size."""
    sizes = tuple(draw(st.integers(1, min(4, d))) for d in (height, width))
    stride = tuple(draw(st.integers(1, 2)) for _ in range(2))
    padding = tuple(draw(st.integers(0, k // 2)) for k in sizes)
    room = [(d + 2 * p - 1) // max(k - 1, 1) for d, p, k in zip((height, width), padding, sizes, strict=True)]
    dilation = tuple(draw(st.integers(1, max(1, min(2, r)))) for r in room)
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    out = groups * draw(st.integers(1, max(1, 6 // groups)))
    return {
        "in_channels": channels, "out_channels": out, "kernel_size": sizes, "stride": stride, "padding": padding,
        "dilation": dilation, "groups": groups,
    }  # fmt: skip


def output_size(options: dict[str, Any], height: int, width: int) -> tuple[int, int]:
    """Rows and columns that a convolution leaves."""
    spans = zip(
        (height, width), *(options[k] for k in ("padding", "dilation", "kernel_size", "stride")), strict=True
    )
    rows, columns = ((d + 2 * p - e * (k - 1) - 1) // s + 1 for d, p, e, k, s in spans)
    return rows, columns


def block(kind: str, options: dict[str, Any]) -> nn.Module:
    """A pooling layer, or a convolution with what follows it."""
    if kind in ("max", "avg"):
        return (nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(**options)
    act, norm = ACTS[options.pop("act")](), options.pop("norm")
    conv = nn.Conv2d(**options)
    inner = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)) if norm else nn.Sequential(conv)
    return Residual(inner, act) if kind == "residual" else nn.Sequential(*inner, act)
