"""Prototypes, loss and gradients in numpy against PyTorch's autograd, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_tinytrain.adaptation import (
    PrototypeClassifier,
    class_prototypes,
    logits,
    loss_and_gradients,
)
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.errors import ShapeError
from tvm_tinytrain.fewshot.protonet import prototypical_loss


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    ways=st.integers(2, 6),
    extra=st.integers(0, 9),
    width=st.integers(1, 12),
    distance=st.sampled_from(["cosine", "euclidean"]),
    through=st.booleans(),
)
def test_gradients_equal_autograd(
    seed: int, ways: int, extra: int, width: int, distance: str, through: bool
) -> None:
    rng = np.random.default_rng(seed)
    loss = Prototypical(distance, 3.0, through)
    labels = np.concatenate([np.arange(ways), rng.integers(0, ways, extra)])
    support, queries = rng.normal(size=(len(labels), width)), rng.normal(size=(7, width))
    query_labels = rng.integers(0, ways, 7)
    found = loss_and_gradients(support, labels, queries, query_labels, loss)
    s, q = (torch.from_numpy(a).requires_grad_() for a in (support, queries))
    value = prototypical_loss(s, torch.from_numpy(labels), q, torch.from_numpy(query_labels), loss)
    value.backward()
    assert found.loss == pytest.approx(value.item(), rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(found.queries, q.grad.numpy(), rtol=1e-9, atol=1e-12)
    if through:
        np.testing.assert_allclose(found.support, s.grad.numpy(), rtol=1e-9, atol=1e-12)
    else:
        assert found.support is None and s.grad is None


def test_an_embedding_of_zeros_has_finite_gradients() -> None:
    support = np.eye(2)
    queries = np.zeros((1, 2))
    found = loss_and_gradients(support, np.array([0, 1]), queries, np.array([0]))
    assert np.isfinite(found.queries).all() and found.loss == pytest.approx(np.log(2))


def test_dtype_of_the_embeddings_is_kept() -> None:
    support = np.eye(3, dtype=np.float32)
    found = loss_and_gradients(support, np.arange(3), support, np.arange(3))
    assert found.queries.dtype == np.float32 and found.support is not None
    assert found.support.dtype == np.float32 and found.accuracy == 1.0


def test_classifier_names_the_nearest_prototype() -> None:
    prototypes = class_prototypes(np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), np.array([0, 0, 1]), 2)
    assert prototypes.tolist() == [[2.0, 0.0], [0.0, 1.0]]
    for distance in ("cosine", "euclidean"):
        classifier = PrototypeClassifier(prototypes, np.array([7, 9]), Prototypical(distance))
        assert classifier.classify(np.array([[1.9, 0.1], [0.1, 0.7]])).tolist() == [7, 9]
    assert logits(np.array([[2.0, 0.0]]), prototypes, Prototypical("euclidean", 1.0)).tolist() == [
        [-0.0, -5.0]
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "text"),
    [
        (np.array([0, 2]), 3, "class 1: found no sample"),
        (np.array([0, 3]), 3, "found 0 … 3; allowed 0 … 2"),
        (np.array([-1, 0]), 3, "found -1 … 0"),
        (np.array([0]), 1, "labels (1,)"),
    ],
)
def test_wrong_labels_are_refused(labels: np.ndarray, classes: int, text: str) -> None:
    with pytest.raises(ShapeError) as caught:
        class_prototypes(np.ones((2, 4)), labels, classes)
    assert text in str(caught.value)
