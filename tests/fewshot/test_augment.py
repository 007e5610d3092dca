"""Augmentation: ranges, determinism, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_tinytrain.adaptation import DiffAugment
from tvm_tinytrain.errors import PlanError, ShapeError

STILL = {"brightness": 0.0, "saturation": 0.0, "contrast": 0.0, "translation": 0.0, "flip": 0.0}


def images(n: int = 6, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, 3, size, size)).astype(np.float32)


def test_a_seed_decides_and_the_input_stays() -> None:
    x = images()
    before = x.copy()
    first, again, other = (DiffAugment()(x, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.dtype == np.float32 and first.shape == x.shape
    assert np.array_equal(first, again) and not np.array_equal(first, other) and np.array_equal(x, before)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    x = images()
    alone = DiffAugment()(x[:1], np.random.default_rng(3))
    assert np.array_equal(alone[0], DiffAugment()(x, np.random.default_rng(3))[0])


def test_nothing_switched_on_changes_nothing() -> None:
    x = images()
    np.testing.assert_allclose(DiffAugment(**STILL)(x, np.random.default_rng(0)), x, atol=1e-6)
    assert np.array_equal(DiffAugment(probability=0.0)(x, np.random.default_rng(0)), x)


def test_flip_mirrors_left_and_right() -> None:
    x = images()
    flipped = DiffAugment(**{**STILL, "flip": 1.0, "probability": 1.0})(x, np.random.default_rng(0))
    np.testing.assert_allclose(flipped, x[..., ::-1], atol=1e-6)


def test_translation_moves_by_at_most_an_eighth_and_fills_with_zero() -> None:
    x = np.ones((200, 1, 16, 16), np.float32)
    moved = DiffAugment(**{**STILL, "translation": 0.125, "probability": 1.0})(x, np.random.default_rng(0))
    rows = (moved.sum(axis=(1, 3)) > 0).sum(axis=1)
    assert set(rows.tolist()) == {14, 15, 16} and set(np.unique(moved).tolist()) == {0.0, 1.0}
    first = moved[:, 0].any(axis=2).argmax(axis=1)
    assert set(first.tolist()) == {0, 1, 2}


def test_brightness_saturation_and_contrast_keep_their_meaning() -> None:
    x = images(200)
    bright = DiffAugment(**{**STILL, "brightness": 0.5, "probability": 1.0})(x, np.random.default_rng(0)) - x
    shift = bright.mean(axis=(1, 2, 3))
    assert np.abs(bright - shift[:, None, None, None]).max() < 1e-5
    assert -0.5 <= shift.min() < -0.4 and 0.4 < shift.max() <= 0.5
    colour = DiffAugment(**{**STILL, "saturation": 1.0, "probability": 1.0})(x, np.random.default_rng(0))
    np.testing.assert_allclose(colour.mean(axis=1), x.mean(axis=1), atol=1e-5)
    contrast = DiffAugment(**{**STILL, "contrast": 0.5, "probability": 1.0})(x, np.random.default_rng(0))
    ratio = contrast.std(axis=(1, 2, 3)) / x.std(axis=(1, 2, 3))
    assert 0.5 <= ratio.min() < 0.55 and 1.45 < ratio.max() <= 1.5


def test_what_is_no_image_or_no_share_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        DiffAugment()(np.zeros((3, 8), np.float32), np.random.default_rng(0))
    assert "your own source of pseudo-queries" in str(caught.value)
    with pytest.raises(PlanError) as refused:
        DiffAugment(translation=1.5)
    assert "translation: found 1.5" in str(refused.value)
