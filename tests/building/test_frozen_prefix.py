"""Task-adaptive libraries whose last layers are linear, with a gradient that is handed in: the frozen prefix ends where it can."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import tvm_tinytrain as tt
from tests.building.adaptive_net import install
from tests.compiled import loaded

IMAGE = (1, 3, 8, 8)


class Sum(nn.Module):
    """Two convolutions beside each other, added."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


def convolution_head() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(32, 3)
    )


NETWORKS = {
    "linear twice": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)), (1, 4), 5),
    "without a bias": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=False)), (1, 4), 5),
    "batch norm between": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (1, 4), 5),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 3)), IMAGE, 128),
    "convolution 1x1": (convolution_head, IMAGE, 32),
    "sum": (lambda: nn.Sequential(Sum(), nn.Flatten(), nn.Linear(128, 3)), IMAGE, 128),
}  # fmt: skip
"""Network, its input, and the values that its last layer reads."""


@cache
def library(name: str) -> tt.TrainModule:
    """The network with its last two layers as candidates."""
    make, shape, _ = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make().eval()
    update = tt.TaskAdaptive(candidates=2, cached_samples=2, cache_bytes=4096)
    return tt.build(
        net, "host", example_inputs=(torch.zeros(shape),), update=update, loss=tt.Prototypical(), accumulate=True
    )  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_is_the_input_of_the_earliest_trained_layer(name: str) -> None:
    slots = library(name).metadata["adaptive"]["cache"]["slot_bytes"]
    assert slots[1][0] == 4 * NETWORKS[name][2] + 4  # and what says that the slot is full


@pytest.mark.host_compiler
@pytest.mark.parametrize("name", NETWORKS)
def test_training_with_the_cache_is_training_without_it(name: str) -> None:
    module, shape, rng = library(name), NETWORKS[name][1], np.random.default_rng(1)
    first, last = (c["layer"] for c in module.metadata["adaptive"]["candidates"])
    given = [
        {"input": rng.normal(size=shape).astype(np.float32), "seed": rng.normal(size=(1, 3)).astype(np.float32)}
        for _ in range(2)
    ]  # fmt: skip
    for channels in ({first: [0, 1], last: [0, 2]}, {last: [1]}):
        with loaded(module, cflags=("-O1",)) as plain, loaded(module, cflags=("-O1",)) as cached:
            for device in (plain, cached):
                install(device, module, channels)
            for iteration in range(3):
                for slot, tensors in enumerate(given):
                    for tensor, value in tensors.items():
                        plain.write(tensor, value)
                        cached.write(
                            tensor,
                            value if iteration == 0 or tensor == "seed" else np.full_like(value, np.nan),
                        )
                    cached.write("slot", np.array([slot], np.int32))
                    plain.call("accumulate")
                    cached.call("accumulate_store" if iteration == 0 else "accumulate_cached")
                    assert cached.read("loss")[0] == plain.read("loss")[0]
                plain.call("apply")
                cached.call("apply")
            cached.call("predict_cached")
            np.testing.assert_array_equal(cached.read("output"), plain.predict(given[-1]["input"]))
