"""ProtoNet (Snell et al., NeurIPS 2017) in numpy: prototypes, logits, loss, and the exact gradients by sample.

The loss couples the samples through the prototypes, but its gradient with respect to each embedding has a
closed form. A device that holds one sample at a time needs nothing else: it is given that gradient (a *seed*)
with the sample and runs its backward pass. All arithmetic is float64; results come back in the embeddings'
dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.errors import ShapeError

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
_TINY = 1e-12
"""Norms below this count as this, as in torch.nn.functional.normalize."""


def class_prototypes(embeddings: FloatArray, labels: IntArray, classes: int) -> npt.NDArray[np.float64]:
    """Return the mean embedding of each class, float64[classes, width].

    embeddings: float[n, width]; labels: integers[n] in 0 … classes-1. Raises ShapeError for another shape, a
    label out of range, or a class without a sample.
    """
    counts = _class_counts(embeddings, labels, classes)
    sums = np.zeros((classes, embeddings.shape[1]))
    np.add.at(sums, labels, embeddings.astype(np.float64))
    return np.asarray(sums / counts[:, None])


def logits(
    queries: FloatArray, prototypes: FloatArray, loss: Prototypical | None = None
) -> npt.NDArray[np.float64]:
    """Return the logits float64[queries, classes] of `loss.distance` (see `Prototypical`)."""
    loss = loss or Prototypical()
    q, p = queries.astype(np.float64), prototypes.astype(np.float64)
    if loss.distance == "cosine":
        return np.asarray(loss.scale * (_unit(q)[0] @ _unit(p)[0].T))
    square = (q**2).sum(axis=1)[:, None] - 2.0 * q @ p.T + (p**2).sum(axis=1)[None, :]
    return np.asarray(-loss.scale * square)


@dataclass(frozen=True)
class PrototypeGradients:
    """Loss of a set of queries and its gradients.

    loss: mean cross-entropy. accuracy: share of queries whose nearest prototype is their own. queries:
    ∂loss/∂embedding of each query, [n, width]; support: the same of each support sample, None unless
    `through_prototypes`.
    """

    loss: float
    accuracy: float
    queries: FloatArray
    support: FloatArray | None


def loss_and_gradients(
    support: FloatArray,
    support_labels: IntArray,
    queries: FloatArray,
    query_labels: IntArray,
    loss: Prototypical | None = None,
) -> PrototypeGradients:
    """Return mean cross-entropy of the queries and its exact gradients.

    support: float[n, width], queries: float[m, width]; labels are integers from 0, every class up to the
    largest support label has a support sample. Raises ShapeError otherwise.
    """
    loss = loss or Prototypical()
    classes = int(support_labels.max(initial=-1)) + 1
    counts = _class_counts(support, support_labels, classes)
    _class_counts(queries, query_labels, classes, each=False)
    prototypes = class_prototypes(support, support_labels, classes)
    scores = logits(queries, prototypes, loss)
    shifted = scores - scores.max(axis=1, keepdims=True)
    probability = np.exp(shifted)
    probability /= probability.sum(axis=1, keepdims=True)
    rows = np.arange(len(queries))
    value = float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, query_labels]))
    accuracy = float(np.mean(scores.argmax(axis=1) == query_labels))
    slope = probability
    slope[rows, query_labels] -= 1.0
    slope *= loss.scale / len(queries)
    to_queries, to_prototypes = _pull_back(slope, queries.astype(np.float64), prototypes, loss.distance)
    to_support = None
    if loss.through_prototypes:
        to_support = (to_prototypes / counts[:, None])[support_labels].astype(support.dtype)
    return PrototypeGradients(value, accuracy, to_queries.astype(queries.dtype), to_support)


def _pull_back(
    slope: npt.NDArray[np.float64],
    queries: npt.NDArray[np.float64],
    prototypes: npt.NDArray[np.float64],
    distance: str,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """From ∂loss/∂(logit / scale) to the gradients of queries and prototypes."""
    if distance == "cosine":
        unit_q, norm_q = _unit(queries)
        unit_p, norm_p = _unit(prototypes)
        return _through_unit(slope @ unit_p, unit_q, norm_q), _through_unit(slope.T @ unit_q, unit_p, norm_p)
    to_queries = 2.0 * (slope @ prototypes - slope.sum(axis=1)[:, None] * queries)
    to_prototypes = 2.0 * (slope.T @ queries - slope.sum(axis=0)[:, None] * prototypes)
    return to_queries, to_prototypes


def _unit(x: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    norm = np.sqrt((x**2).sum(axis=1, keepdims=True))
    return x / np.maximum(norm, _TINY), norm


def _through_unit(
    gradient: npt.NDArray[np.float64], unit: npt.NDArray[np.float64], norm: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Through u = x / max(‖x‖, tiny): (g - u·(u·g)) / ‖x‖, and g / tiny where the norm is clamped."""
    along = (gradient * unit).sum(axis=1, keepdims=True) * (norm > _TINY)
    return np.asarray((gradient - unit * along) / np.maximum(norm, _TINY))


def _class_counts(
    embeddings: FloatArray, labels: IntArray, classes: int, *, each: bool = True
) -> npt.NDArray[np.int64]:
    stage = "prototypes"
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        found = f"embeddings {embeddings.shape}, labels {labels.shape}"
        raise ShapeError(stage, "samples", found, "[n, width] and [n], n ≥ 1", "one label for each sample")
    if labels.min() < 0 or labels.max() >= classes:
        found = f"{labels.min()} … {labels.max()}"
        raise ShapeError(stage, "labels", found, f"0 … {classes - 1}", "number the classes from 0")
    counts = np.bincount(labels, minlength=classes)
    if each and not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        raise ShapeError(
            stage, f"class {empty}", "no sample", "at least one for each class", "number the classes from 0"
        )
    return counts


@dataclass(frozen=True)
class PrototypeClassifier:
    """The nearest prototype: prototypes float64[classes, width], labels[i] is what class i is called."""

    prototypes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    loss: Prototypical

    def logits(self, embeddings: FloatArray) -> npt.NDArray[np.float64]:
        """Logits float64[n, classes] of embeddings [n, width]."""
        return logits(embeddings, self.prototypes, self.loss)

    def classify(self, embeddings: FloatArray) -> npt.NDArray[np.int64]:
        """Labels int64[n] of embeddings [n, width]."""
        return np.asarray(self.labels[self.logits(embeddings).argmax(axis=1)])
