"""ProtoNet in PyTorch: the loss of meta-training, and of the reference that compiled adaptations are checked against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tvm_tinytrain.config import Prototypical


def prototypical_logits(
    support: Tensor, support_labels: Tensor, queries: Tensor, loss: Prototypical | None = None
) -> Tensor:
    """Logits [m, classes] of queries [m, …] against the class means of support [n, …]; differentiable.

    An embedding is all that follows the first dimension. support_labels: int64[n], classes numbered from 0, each with a sample.
    """
    loss = loss or Prototypical()
    support, queries = support.flatten(1), queries.flatten(1)
    members = functional.one_hot(support_labels).to(support.dtype)
    prototypes = (members / members.sum(dim=0)).T @ support
    if not loss.through_prototypes:
        prototypes = prototypes.detach()
    if loss.distance == "cosine":
        unit = functional.normalize(queries, dim=1) @ functional.normalize(prototypes, dim=1).T
        return loss.scale * unit
    return -loss.scale * ((queries[:, None, :] - prototypes[None, :, :]) ** 2).sum(dim=2)


def prototypical_loss(
    support: Tensor,
    support_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    loss: Prototypical | None = None,
) -> Tensor:
    """Mean cross-entropy of `prototypical_logits`."""
    scores = prototypical_logits(support, support_labels, queries, loss)
    return functional.cross_entropy(scores, query_labels)


def nearest_prototype_accuracy(
    model: torch.nn.Module,
    support: Tensor,
    support_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    loss: Prototypical | None = None,
) -> float:
    """Share of queries whose nearest prototype is their own class's; the model is run without gradients."""
    with torch.no_grad():
        scores = prototypical_logits(model(support), support_labels, model(queries), loss)
    return float((scores.argmax(dim=1) == query_labels).double().mean())
