"""The network whose C stands in golden/, and others like it; built once for each set of options."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.config import SGD, Optimizer, Update
from tvm_tinytrain.targets.target import parse_target

M7 = "c -mcpu=cortex-m7"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")


class Small(nn.Module):
    """Convolution with batch norm and ReLU6, depthwise, residual, max pooling, mean, linear: 3 classes."""

    shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.depthwise = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.point = nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm(self.conv(x)))
        y = self.point(F.relu6(self.depthwise(y))) + y
        return self.head(F.max_pool2d(y, 2).mean([2, 3]))


def small() -> nn.Module:
    """`Small` with weights that no random generator decides: eighths between -1 and 1."""
    net = Small().eval()
    with torch.no_grad():
        for index, tensor in enumerate([*net.parameters(), net.norm.running_mean]):
            count = torch.arange(tensor.numel()).reshape(tensor.shape)
            tensor.copy_(((count * 7 + index * 3) % 17 - 8) / 8)
        net.norm.running_var.copy_(torch.tensor([0.5, 4.0]))
    return net


def example() -> Tensor:
    """An input for `small`, as regular as its weights."""
    return ((torch.arange(16).reshape(1, *Small.shape) * 5 % 13) - 6) / 4


@cache
def library(
    target: str = M7,
    optimizer: Optimizer | None = None,
    update: Update | None = None,
    accumulate: bool = False,
    name: str = "small",
) -> TrainModule:
    """The library of `small`."""
    return build(
        small(), target, example_inputs=(torch.zeros(1, *Small.shape),), optimizer=optimizer or SGD(0.125), update=update,
        accumulate=accumulate, name=name,
    )  # fmt: skip


def compile_objects(module: TrainModule, folder: Path, compiler: str, flags: Sequence[str]) -> list[Path]:
    """Writes and compiles the library's sources alone in `folder`, one object each; a compiler's complaint fails the test."""
    module.write(folder)
    sources = sorted(name for name in module.files if name.endswith(".c"))
    for source in sources:
        command = [compiler, *STRICT, *flags, "-c", source, "-o", source + ".o"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, f"{' '.join(command)}\n{done.stderr}"
    return [folder / (source + ".o") for source in sources]


def m7_flags() -> tuple[str, ...]:
    """What the target compiles with."""
    return parse_target(M7).cflags
