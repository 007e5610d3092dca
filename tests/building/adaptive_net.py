"""A small network for task-adaptive tests: strided, depthwise, pointwise and linear layers with a skip connection."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

import tvm_tinytrain as tt
from tvm_tinytrain.micro.in_process import InProcess

SHAPE = (1, 3, 12, 12)
CLASSES = 6


class SmallNet(nn.Module):
    """conv 3×3/2 → depthwise 3×3 → 1×1 + skip → max pool → mean → linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.project = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [1, 6]."""
        y = nn.functional.relu6(self.stem(x))
        z = self.project(nn.functional.relu6(self.depthwise(y))) + y
        return self.head(nn.functional.max_pool2d(z, 2).mean((2, 3)))


def network() -> SmallNet:
    """Always the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return SmallNet().eval()


def samples(count: int) -> list[tuple[np.ndarray, int]]:
    """Images and labels, always the same."""
    rng = np.random.default_rng(5)
    return [(rng.normal(size=SHAPE).astype(np.float32), i % CLASSES) for i in range(count)]


@cache
def program() -> torch.export.ExportedProgram:
    """The network as PyTorch exports it, once for all builds."""
    return torch.export.export(network(), (torch.zeros(SHAPE),))


def build(**options: object) -> tt.TrainModule:
    """A library of the network for the host; Adam."""
    return tt.build(program(), "host", optimizer=tt.Adam(0.01), **options)  # type: ignore[arg-type]


def request(module: tt.TrainModule, channels: dict[int, list[int]]) -> np.ndarray:
    """The tensor ``request`` for a choice of channels by layer."""
    bits = [
        int(c in channels.get(entry["layer"], ()))
        for entry in module.metadata["adaptive"]["candidates"]
        for c in range(entry["channels"])
    ]
    return np.packbits(np.array(bits, np.uint8), bitorder="little")


def install(library: InProcess, module: tt.TrainModule, channels: dict[int, list[int]]) -> None:
    """Has the device train these channels."""
    library.write("request", request(module, channels))
    library.call("install")
