"""The comparison with PyTorch that stands beside the accuracies: branches beside the blocks have a reference too."""

from __future__ import annotations

import pytest
import torch

from benchmarks.accuracy_agreement import measure_agreement, methods_to_compare
from tests.compiled import loaded
from tests.fewshot.small import SIZE, digits, small_backbone
from tvm_tinytrain.fewshot.datasets import from_arrays
from tvm_tinytrain.fewshot.methods import build_methods


@pytest.mark.host_compiler
def test_branches_are_trained_as_pytorch_trains_them() -> None:
    methods = build_methods(
        small_backbone(), (torch.zeros(1, 3, SIZE, SIZE),), ("none", "adapterdrop", "fisher")
    )
    (method,) = methods_to_compare(methods)
    assert method.name == "adapterdrop"
    assert methods[0].library.name == "lastlayer"  # "none" predicts without branches
    images, labels = digits()
    found = measure_agreement(
        method, from_arrays(images[::20], labels[::20], name="MNIST-250"), small_backbone, loaded
    )
    assert found.queries == 75
    assert found.predictions >= 0.98 and found.torch_predictions >= 0.98
    assert 0.0 < found.weights <= 1e-3
