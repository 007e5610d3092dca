"""What a case of the operator tables is, and how it becomes a network.

`probe` wraps the operator so that the gradient of every input is the gradient of a parameter too: the network takes x[1, 4], and one
linear layer per input of the operator makes that input, its bias being the input itself but for a small share of x. So one
comparison of parameter gradients checks the operator's input and parameter gradients alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
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
            nn.init.uniform_(
                source.get_parameter("weight"), -margin / PROBE_FEATURES, margin / PROBE_FEATURES
            )
            nn.init.uniform_(source.get_parameter("bias"), low + 2 * margin, high - 2 * margin)

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
            value.uniform_(0.5, 1.5) if name == "weight" else value.normal_(std=0.5)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        assert module.running_mean is not None and module.running_var is not None
        module.running_mean.normal_(std=0.5)
        module.running_var.uniform_(0.5, 2.0)


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
