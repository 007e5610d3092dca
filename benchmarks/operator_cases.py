"""Cases for gradients of single operators: small PyTorch modules with the shapes of their inputs, as plain data.

`operator_cases()` lists them; `probe(case)` wraps the operator so that the gradient of every input is the gradient of a parameter
too: the network takes x[1, 4], and one linear layer per input of the operator makes that input, its bias being the input itself but
for a small share of x. So one comparison of parameter gradients checks the operator's input and parameter gradients alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]
PROBE_FEATURES = 4
PROBE_INPUT = (1, PROBE_FEATURES)


@dataclass(frozen=True)
class OperatorCase:
    """One operator: ``make`` gives the module, ``shapes`` those of its float32 inputs (batch 1).

    ``domain`` bounds the inputs' values. ``loss`` is ``mse``, ``cross_entropy`` or ``bce``.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    domain: tuple[float, float] = (-2.0, 2.0)
    loss: str = "mse"


class Lambda(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        """Whatever the function says."""
        return self.function(*tensors)


class Parametrised(nn.Module):
    """A function of tensors and of trainable parameters that are no layer's: ``function(*tensors, **parameters)``."""

    def __init__(self, function: Callable[..., Tensor], **shapes: Shape) -> None:
        super().__init__()
        self.function = function
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Whatever the function says."""
        return self.function(*tensors, **dict(self.named_parameters()))


class Probe(nn.Module):
    """Linear layers that make the inputs of ``op`` from x[1, 4]."""

    def __init__(self, op: nn.Module, shapes: tuple[Shape, ...], domain: tuple[float, float]) -> None:
        super().__init__()
        self.sources = nn.ModuleList(nn.Linear(PROBE_FEATURES, math.prod(s)) for s in shapes)
        self.op = op
        self.shapes = shapes
        low, high = domain
        margin = 0.05 * (high - low)
        for source in self.sources:
            nn.init.uniform_(source.weight, -margin / PROBE_FEATURES, margin / PROBE_FEATURES)
            nn.init.uniform_(source.bias, low + 2 * margin, high - 2 * margin)

    def forward(self, x: Tensor) -> Tensor:
        """[1, 4] → the operator's output."""
        return self.op(*(s(x).reshape(shape) for s, shape in zip(self.sources, self.shapes, strict=True)))


def probe(case: OperatorCase, seed: int = 0) -> nn.Module:
    """The case as a network for inputs of shape `PROBE_INPUT`, reproducible, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        op = case.make()
        for module in op.modules():
            _randomise(module)
        return Probe(op, case.shapes, case.domain).eval()


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Affine parameters and statistics away from the ones and zeros they start with."""
    for name in ("weight", "bias"):
        value = getattr(module, name, None)
        if isinstance(value, nn.Parameter) and value.ndim == 1:
            nn.init.uniform_(value, 0.5, 1.5) if name == "weight" else nn.init.normal_(value, std=0.5)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        assert module.running_mean is not None and module.running_var is not None
        nn.init.normal_(module.running_mean, std=0.5)
        nn.init.uniform_(module.running_var, 0.5, 2.0)


def case(
    name: str, make: Callable[[], nn.Module] | Callable[..., Tensor], *shapes: Shape, **options: Any
) -> OperatorCase:
    """A case whose second argument is a class of modules, a zero-argument lambda, or a function of tensors."""
    return OperatorCase(name, make, shapes, **options)  # type: ignore[arg-type]


def fn(function: Callable[..., Tensor], **parameters: Shape) -> Callable[[], nn.Module]:
    """A factory of modules that call ``function``, with trainable parameters of these shapes."""
    if parameters:
        return lambda: Parametrised(function, **parameters)
    return lambda: Lambda(function)


IMAGE = (1, 4, 6, 5)
VECTOR = (1, 12)
SERIES = (1, 4, 11)
TOKENS = (1, 5, 8)


def operator_cases() -> list[OperatorCase]:
    """All cases; their names are unique."""
    groups = (
        convolutions, transposed_convolutions, products, activations, normalisations, pools, reductions, shapes_and_slices,
        arithmetic, softmaxes, blocks,
    )  # fmt: skip
    cases = [c for group in groups for c in group()]
    assert len({c.name for c in cases}) == len(cases)
    return cases


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
    yield case("leaky relu", lambda: nn.LeakyReLU(0.1), IMAGE)
    yield case("leaky relu, negative slope", lambda: nn.LeakyReLU(-0.3), IMAGE)
    yield case("prelu", lambda: nn.PReLU(4), IMAGE)
    yield case("clamp from below", fn(lambda x: x.clamp(min=0.3)), IMAGE)
    yield case("clamp from above", fn(lambda x: x.clamp(max=0.3)), IMAGE)
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
    yield case("power 0.5", fn(lambda x: x**0.5), IMAGE, domain=(0.2, 3.0))
    yield case("log1p", fn(torch.log1p), IMAGE, domain=(-0.5, 2.0))
    yield case("floor beside identity", fn(lambda x: x.floor() * 0.5 + x), IMAGE)
    yield case("dropout", nn.Dropout, IMAGE)
    yield case("identity", nn.Identity, IMAGE)


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
    """Max, average and adaptive average pooling."""
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
        "avg pool 3, overlapping": lambda: nn.AvgPool2d(3, 1),
        "avg pool 2, ceil mode": lambda: nn.AvgPool2d(2, ceil_mode=True),
        "avg pool 3, ceil mode, padded": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        "avg pool of everything": lambda: nn.AvgPool2d((8, 7)),
        "adaptive avg pool to 1": lambda: nn.AdaptiveAvgPool2d(1),
        "adaptive avg pool to (4, 1)": lambda: nn.AdaptiveAvgPool2d((4, 1)),
        "adaptive avg pool to (3, 5)": lambda: nn.AdaptiveAvgPool2d((3, 5)),
        "adaptive avg pool upwards": lambda: nn.AdaptiveAvgPool2d((9, 7)),
    }
    for name, make in modules.items():
        yield case(name, make, image)
    yield case("max pool 1d", lambda: nn.MaxPool1d(3, 2, 1), SERIES)
    yield case("avg pool 1d", lambda: nn.AvgPool1d(2), SERIES)
    yield case("adaptive avg pool 1d to 1", lambda: nn.AdaptiveAvgPool1d(1), SERIES)
    yield case("adaptive avg pool 1d to 3", lambda: nn.AdaptiveAvgPool1d(3), SERIES)


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
        "logsumexp": lambda x: x.logsumexp(1),
        "euclidean length": lambda x: x.square().sum(1).sqrt(),
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
        "pad with a value": lambda x: F.pad(x, (1, 1, 1, 1), value=2.5),
        "pad by reflection": lambda x: F.pad(x, (2, 1, 1, 2), mode="reflect"),
        "pad by replication": lambda x: F.pad(x, (2, 1, 1, 2), mode="replicate"),
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
