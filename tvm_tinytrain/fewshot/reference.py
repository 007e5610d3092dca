"""The online stage in PyTorch, draw by draw the same as `tvm_tinytrain.adaptation.adapt`: what it is checked against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tvm_tinytrain.adaptation import DiffAugment, QuerySource
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.fewshot.protonet import prototypical_loss


def adapt_reference(
    model: nn.Module,
    support_images: npt.NDArray[np.float32],
    support_labels: npt.NDArray[np.integer],
    *,
    parameters: Sequence[nn.Parameter] | None = None,
    masks: Sequence[torch.Tensor] | None = None,
    iterations: int = 40,
    lr: float = 1e-3,
    loss: Prototypical | None = None,
    queries: QuerySource | None = None,
    seed: int = 0,
    skipped_draws: int = 0,
) -> list[float]:
    """Adapt `model` in place by Adam over whole batches and autograd; returns the loss before each step.

    parameters: what is trained (default: all). masks: for each of them a tensor of 0 and 1 that broadcasts to its
    shape; gradients are multiplied by it, so that rows of 0 stay as they are. support_labels: numbered from 0.
    skipped_draws: pseudo-queries that are drawn and not used first, as a library that selects uses one set for its Fisher pass.
    The model should be in eval mode. Images are float32[n, …]; with a float64 model they are widened.
    """
    trained = list(model.parameters() if parameters is None else parameters)
    dtype = trained[0].dtype
    optimizer = torch.optim.Adam(trained, lr=lr)
    rng = np.random.default_rng(seed)
    source = queries or DiffAugment()
    labels = torch.from_numpy(np.asarray(support_labels, np.int64))
    support = torch.from_numpy(support_images).to(dtype)
    losses = []
    for _ in range(skipped_draws):
        source(support_images, rng)
    for _ in range(iterations):
        made = torch.from_numpy(np.asarray(source(support_images, rng), np.float32)).to(dtype)
        optimizer.zero_grad()
        value = prototypical_loss(model(support), labels, model(made), labels, loss)
        value.backward()
        for parameter, mask in zip(trained, masks or (), strict=False):
            if parameter.grad is not None:
                parameter.grad *= mask
        optimizer.step()
        losses.append(float(value.detach()))
    return losses
