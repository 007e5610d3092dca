"""Cases for gradients of single operators: small PyTorch modules with the shapes of their inputs, as plain data.

`operator_cases()` lists them all; `probe(case)` makes one a network whose parameter gradients are the operator's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import operator_layers as layers
from benchmarks.operator_probe import (
    IMAGE,
    PROBE_INPUT,
    SERIES,
    TOKENS,
    VECTOR,
    Lambda,
    OperatorCase,
    case,
    fn,
    probe,
)

__all__ = ["PROBE_INPUT", "Lambda", "OperatorCase", "case", "fn", "operator_cases", "probe"]


def operator_cases() -> list[OperatorCase]:
    """All cases; their names are unique."""
    groups = (
        layers.convolutions, layers.transposed_convolutions, layers.products, activations, layers.normalisations,
        layers.pools, reductions, shapes_and_slices, arithmetic, softmaxes, layers.masks, layers.blocks,
    )  # fmt: skip
    cases = [c for group in groups for c in group()]
    assert len({c.name for c in cases}) == len(cases)
    return cases


def activations() -> Iterator[OperatorCase]:
    """Elementwise functions of one variable."""
    modules: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU, "relu6": nn.ReLU6, "hardtanh": nn.Hardtanh, "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU,
        "elu": nn.ELU, "selu": nn.SELU, "softplus": nn.Softplus, "softsign": nn.Softsign, "mish": nn.Mish,
        "logsigmoid": nn.LogSigmoid, "celu": nn.CELU,
    }  # fmt: skip
    for name, make in modules.items():
        yield case(name, make, IMAGE, domain=(-5.0, 8.0))
    yield case("elu, alpha 0.7", lambda: nn.ELU(0.7), IMAGE, domain=(-5.0, 8.0))
    yield case("celu, alpha 0.5", lambda: nn.CELU(0.5), IMAGE, domain=(-5.0, 8.0))
    yield case("elu of large values", nn.ELU, IMAGE, domain=(-200.0, 200.0))
    yield case("gelu tanh", lambda: nn.GELU("tanh"), IMAGE, domain=(-4.0, 4.0))
    yield case("sine and cosine", fn(lambda x: x.sin() * (x * 0.5).cos()), IMAGE, domain=(-4.0, 4.0))
    yield case("leaky relu", lambda: nn.LeakyReLU(0.1), IMAGE)
    yield case("leaky relu, negative slope", lambda: nn.LeakyReLU(-0.3), IMAGE)
    yield case("prelu", lambda: nn.PReLU(4), IMAGE)
    yield case("clamp from below", fn(lambda x: x.clamp(min=0.3)), IMAGE)
    yield case("clamp from above", fn(lambda x: x.clamp(max=0.3)), IMAGE)
    yield case("clamp, bounds the wrong way round", fn(lambda x: x.clamp(0.5, 0.1) + x), IMAGE)
    yield case("product with a comparison", fn(lambda x: x * (x > 0.1)), IMAGE)
    yield case("step as a number", fn(lambda x: x * (x > 0.1).to(x.dtype)), IMAGE)
    yield case("step alone", fn(lambda x: (x > 0.1).to(x.dtype) + x), IMAGE)
    yield case("equal to the largest", fn(lambda x: x * (x == x.amax(1, keepdim=True)).to(x.dtype)), IMAGE)
    yield case("one-hot of the largest", fn(lambda x: F.one_hot(x.argmax(-1), 5).to(x.dtype) * x), IMAGE)
    yield case("smallest along an axis", fn(lambda x: x.min(1).values), IMAGE)
    yield case(
        "where it is no number", fn(lambda x: torch.where(x.isnan(), torch.zeros_like(x), x) * x), IMAGE
    )
    yield case("where it is infinite", fn(lambda x: torch.where((1.0 / x.relu()).isinf(), x * 2.0, x)), IMAGE)
    yield case("clamp", fn(lambda x: x.clamp(-0.7, 0.4)), IMAGE)
    yield case("clamp of a line", fn(lambda x: (x * 0.5 - 0.1).clamp(-0.3, 0.4) * 2.0), IMAGE)
    yield case(
        "hardswish by hand", fn(lambda x: x * F.relu6(x + 3.0) * (1.0 / 6.0)), IMAGE, domain=(-5.0, 5.0)
    )
    yield case("quick gelu", fn(lambda x: x * torch.sigmoid(1.702 * x)), IMAGE)
    yield case("exp", fn(torch.exp), IMAGE)
    yield case("log", fn(torch.log), IMAGE, domain=(0.2, 3.0))
    yield case("sqrt", fn(torch.sqrt), IMAGE, domain=(0.2, 3.0))
    yield case("rsqrt", fn(torch.rsqrt), IMAGE, domain=(0.2, 3.0))
    yield case("reciprocal", fn(torch.reciprocal), IMAGE, domain=(0.5, 3.0))
    yield case("abs", fn(torch.abs), IMAGE)
    yield case("erf", fn(torch.erf), IMAGE)
    yield case("square", fn(torch.square), IMAGE)
    yield case("cube", fn(lambda x: x**3), IMAGE)
    yield case("power -2", fn(lambda x: x**-2), IMAGE, domain=(0.5, 2.0))
    yield case("power 1.7", fn(lambda x: x**1.7), IMAGE, domain=(0.2, 3.0))
    yield case("power of a trained exponent", fn(lambda x, p: x**p, p=(1, 4, 1, 1)), IMAGE, domain=(0.2, 3.0))
    yield case("power of each other", fn(lambda x, y: (x.abs() + 0.1) ** y), IMAGE, IMAGE)
    yield case("power of zeros", fn(lambda x, y: x.relu() ** (y.abs() + 0.5)), IMAGE, (1, 4, 1, 1))
    yield case("power 0.5", fn(lambda x: x**0.5), IMAGE, domain=(0.2, 3.0))
    yield case("log1p", fn(torch.log1p), IMAGE, domain=(-0.5, 2.0))
    yield case("floor beside identity", fn(lambda x: x.floor() * 0.5 + x), IMAGE)
    yield case("dropout", nn.Dropout, IMAGE)
    yield case("identity", nn.Identity, IMAGE)


def reductions() -> Iterator[OperatorCase]:
    """Sums, means and variances over axes."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "mean of pixels": lambda x: x.mean((2, 3)),
        "mean of pixels, axes kept": lambda x: x.mean((2, 3), keepdim=True),
        "mean of channels": lambda x: x.mean(1),
        "mean of everything": lambda x: x.mean((0, 1, 2, 3), keepdim=True),
        "sum of rows": lambda x: x.sum(2),
        "sum of channels and columns": lambda x: x.sum((1, 3), keepdim=True),
        "variance of pixels": lambda x: x.var((2, 3), unbiased=False),
        "variance, unbiased": lambda x: x.var(1, keepdim=True),
        "standard deviation": lambda x: x.std((2, 3)),
        "largest of pixels": lambda x: x.amax((2, 3)),
        "smallest of channels": lambda x: x.amin(1, keepdim=True),
        "variance and mean": lambda x: torch.mul(*torch.var_mean(x, (1, 3), correction=0)),
        "variance and mean, unbiased": lambda x: torch.add(*torch.var_mean(x, 1, keepdim=True)),
        "logsumexp": lambda x: x.logsumexp(1),
        "length of everything": lambda x: x / x.norm(),
        "euclidean length": lambda x: x.square().sum(1).sqrt(),
        "product of rows": lambda x: x.prod(2),
        "product of channels, some of them zero": lambda x: x.relu().prod(1, keepdim=True),
        "running sum of channels": lambda x: x.cumsum(1),
        "running sum of columns": lambda x: x.cumsum(-1) * x,
    }
    for name, function in functions.items():
        yield case(name, fn(function), IMAGE)


def shapes_and_slices() -> Iterator[OperatorCase]:
    """Operators that move, cut, join and repeat."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "reshape": lambda x: x.reshape(1, 10, 12),
        "flatten": lambda x: x.flatten(1),
        "squeeze": lambda x: x.mean(2, keepdim=True).squeeze(2),
        "unsqueeze": lambda x: x.unsqueeze(2),
        "permute": lambda x: x.permute(0, 2, 3, 1),
        "transpose": lambda x: x.transpose(1, 3),
        "permute twice": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 2, 1),
        "there and back": lambda x: x.transpose(1, 2).transpose(1, 2) * x,
        "channel shuffle": lambda x: x.reshape(1, 2, 2, 6, 5).transpose(1, 2).reshape(1, 4, 6, 5),
        "channel shuffle module": lambda x: F.channel_shuffle(x, 2),
        "slice of channels": lambda x: x[:, 1:3],
        "slice with strides": lambda x: x[:, :, ::2, 1::3],
        "slice from the end": lambda x: x[:, :, -3:, :-1],
        "select": lambda x: x[:, :, 2],
        "select last": lambda x: x[..., -1],
        "narrow": lambda x: x.narrow(2, 1, 3),
        "split": lambda x: torch.mul(*x.split(2, 1)),
        "split, one part read": lambda x: x.split(1, 1)[2],
        "split, parts left out": lambda x: torch.mul(*x.split(1, 1)[1::2]),
        "unequal split": lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.split([1, 2, 1], 1))], 1),
        "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        "unbind": lambda x: x.unbind(1)[0] * x.unbind(1)[2],
        "glu": lambda x: F.glu(x, 1),
        "concat": lambda x: torch.cat([x, x * 2.0, x.tanh()], 1),
        "concat of rows": lambda x: torch.cat([x, x * x], 2),
        "stack": lambda x: torch.stack([x, x * x], 2),
        "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
        "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)),
        "pad by less than nothing": lambda x: F.pad(x, (-1, -1, -2, 1), value=0.5),
        "pad that moves": lambda x: F.pad(x, (-1, 1)),
        "crop in front of a convolution": lambda x: F.conv2d(
            F.pad(x, (-1, 1, 1, -1)), torch.ones(3, 4, 2, 2, dtype=x.dtype)
        ),
        "pad with a value": lambda x: F.pad(x, (1, 1, 1, 1), value=2.5),
        "pad by reflection": lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"),
        "pad by replication": lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"),
        "pad by wrapping": lambda x: F.pad(x[0], (2, 1), mode="circular"),
        "pad by wrapping, both axes": lambda x: F.pad(x, (2, 1, 1, 2), mode="circular"),
        "largest of rows": lambda x: x.max(2).values,
        "one of the largest": lambda x: x.topk(1, 3).values,
        "part replaced": lambda x: x.slice_scatter(x[:, :, :2] * 2.0, 2, 1, 5, 2),
        "expand": lambda x: x.mean(1, keepdim=True).expand(1, 4, 6, 5) * x,
        "repeat": lambda x: x.repeat(1, 2, 1, 3),
        "flip": lambda x: x.flip(2),
        "roll": lambda x: x.roll(1, 2),
        "upsample nearest": lambda x: F.interpolate(x, scale_factor=2),
        "upsample nearest by 3": lambda x: F.interpolate(x, scale_factor=3),
        "upsample nearest (2, 1)": lambda x: F.interpolate(x, size=(12, 5)),
        "upsample nearest to (9, 11)": lambda x: F.interpolate(x, size=(9, 11)),
        "upsample nearest by 1.5": lambda x: F.interpolate(x, scale_factor=1.5),
        "downsample nearest": lambda x: F.interpolate(x, size=(4, 2)),
        "upsample bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "upsample bilinear, corners": lambda x: F.interpolate(
            x, size=(9, 8), mode="bilinear", align_corners=True
        ),
        "upsample bilinear to (7, 11)": lambda x: F.interpolate(x, size=(7, 11), mode="bilinear"),
        "upsample bilinear by 1.7": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        "upsample bilinear by (0.7, 2)": lambda x: F.interpolate(x, scale_factor=(0.7, 2.0), mode="bilinear"),
        "upsample bilinear, antialiased": lambda x: F.interpolate(
            x, scale_factor=2, mode="bilinear", antialias=True
        ),
        "index": lambda x: x[:, [2, 0, -1]],
        "index by a matrix": lambda x: x[:, torch.tensor([[0, 3], [-1, 2]])],
        "indices in pairs": lambda x: x[:, :, [0, 2, -1], [1, 3, 0]],
        "indices in triples": lambda x: x[:, [0, -1], [1, 0], [4, 4]],
        "indices of a grid": lambda x: x[:, :, torch.tensor([[3], [-1], [1]]), torch.tensor([0, -1])],
        "indices of a grid and pairs": lambda x: x[:, [[1], [2]], torch.tensor([[3], [0]]), [1, 2]],
        "index of every element": lambda x: x.gather(1, torch.arange(90).reshape(1, 3, 6, 5) % 4),
        "lower triangles": lambda x: x.tril(1),
        "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
        "pixel unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :, :4], 2),
    }
    for name, function in functions.items():
        yield case(name, fn(function), IMAGE)
    yield case("upsample nearest 1d", fn(lambda x: F.interpolate(x, scale_factor=2)), SERIES)
    yield case("upsample nearest 1d to 17", fn(lambda x: F.interpolate(x, size=17)), SERIES)


def arithmetic() -> Iterator[OperatorCase]:
    """Binary operators with and without broadcasting."""
    binary: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div, "maximum": torch.maximum,
        "minimum": torch.minimum,
    }  # fmt: skip
    for name, function in binary.items():
        domain = (0.5, 2.0) if name == "divide" else (-2.0, 2.0)
        yield case(name, fn(function), IMAGE, IMAGE, domain=domain)
        yield case(f"{name}, per channel", fn(function), IMAGE, (1, 4, 1, 1), domain=domain)
        yield case(f"{name}, per column from the left", fn(function), (5,), IMAGE, domain=domain)
        yield case(f"{name}, outer", fn(function), (1, 4, 6, 1), (1, 1, 1, 5), domain=domain)
    yield case("times a trained scale", fn(lambda x, scale: x * scale, scale=(1, 4, 1, 1)), IMAGE)
    yield case("trained scale from the left", fn(lambda x, scale: scale * x, scale=IMAGE), IMAGE)
    yield case(
        "divided by a trained scale", fn(lambda x, scale: x / (scale * scale + 0.5), scale=(4, 1, 1)), IMAGE
    )
    yield case("scalar arithmetic", fn(lambda x: 2.0 - 3.0 * x / 4.0 + (-x)), IMAGE)
    yield case("reciprocal of a sum", fn(lambda x: 1.0 / (x * x + 1.0)), IMAGE)
    yield case("add with a factor", fn(lambda a, b: torch.add(a, b, alpha=-0.5)), IMAGE, IMAGE)
    yield case("where", fn(lambda x: torch.where(x > 0.2, x * x, 0.1 * x)), IMAGE)
    yield case("where of two", fn(lambda a, b: torch.where(a > b, a, 0.3 * b)), IMAGE, IMAGE)
    yield case("masked fill", fn(lambda x: x.masked_fill(x < 0.0, -1.0)), IMAGE)
    yield case("masked fill by a table", fn(lambda x: x.masked_fill(torch.eye(6, 5).bool(), -1.0)), IMAGE)
    yield case("where by a table", fn(lambda x, y: torch.where(torch.eye(6, 5).bool(), x, y)), IMAGE, IMAGE)
    yield case("where by nonzero", fn(lambda x: torch.where(F.relu(x).bool(), x, 0.3 * x)), IMAGE)
    yield case("lerp", fn(lambda x, y: torch.lerp(x, y, 0.3)), IMAGE, IMAGE)


def softmaxes() -> Iterator[OperatorCase]:
    """Softmax, log-softmax and the losses."""
    yield case("softmax", lambda: nn.Softmax(1), VECTOR)
    yield case("softmax of channels", lambda: nn.Softmax(1), IMAGE)
    yield case("softmax of tokens", lambda: nn.Softmax(-1), TOKENS)
    yield case("softmax of large values", lambda: nn.Softmax(-1), VECTOR, domain=(90.0, 110.0))
    yield case("log softmax", lambda: nn.LogSoftmax(1), VECTOR)
    yield case("log softmax of channels", lambda: nn.LogSoftmax(1), IMAGE)
    yield case("softmin", lambda: nn.Softmin(1), VECTOR)
    yield case("cross-entropy", lambda: nn.Linear(12, 7), VECTOR, loss="cross_entropy")
    yield case("binary cross-entropy", lambda: nn.Linear(12, 7), VECTOR, loss="bce")
