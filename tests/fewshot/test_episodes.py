"""Samplers of tasks: what they promise, and images from folders and arrays."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tvm_tinytrain.errors import ImportModelError, PlanError
from tvm_tinytrain.fewshot.datasets import Dataset, from_arrays, from_folder
from tvm_tinytrain.fewshot.episodes import Episode, FixedWays, VariousWays, episodes, sample_episode


def made(sizes: list[int], frames: int = 1) -> Dataset:
    """Samples of shape [1] that hold their index; `frames` of them in a row are one group."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.arange(len(labels), dtype=np.float32)[:, None]
    groups = np.concatenate([np.arange(n) // frames for n in sizes])
    return from_arrays(images, labels, groups=groups if frames > 1 else None, name="made")


def check(episode: Episode) -> None:
    assert len(set(episode.classes.tolist())) == episode.ways
    for label, support, queries in zip(episode.classes, episode.support, episode.queries, strict=True):
        groups = episode.dataset.groups[label]
        assert len(support) and len(queries)
        assert len(np.unique(np.concatenate([support, queries]))) == len(support) + len(queries)
        assert not set(groups[support].tolist()) & set(groups[queries].tolist())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(4, 120), min_size=5, max_size=60), st.sampled_from([1, 2]), st.integers(0, 2**31))
def test_various_ways_keep_the_limits(sizes: list[int], frames: int, seed: int) -> None:
    episode = sample_episode(made(sizes, frames), VariousWays(), seed, 0)
    check(episode)
    assert 5 <= episode.ways <= min(50, len(sizes))
    assert sum(len(s) for s in episode.support) <= 500
    assert max(len(q) for q in episode.queries) <= 10
    if frames == 1:
        assert len({len(q) for q in episode.queries}) == 1  # class-balanced


def test_various_ways_are_various_and_imbalanced() -> None:
    found = [sample_episode(made([80] * 30), VariousWays(), 1, i) for i in range(60)]
    assert len({e.ways for e in found}) > 15
    assert min(e.ways for e in found) < 8 and max(e.ways for e in found) > 27
    assert sum(len({len(s) for s in e.support}) > 1 for e in found) > 50


@pytest.mark.parametrize("most", [5, 7, 20])
def test_various_ways_keep_a_small_limit_of_support(most: int) -> None:
    found = [sample_episode(made([80] * 30), VariousWays(max_support=most), 1, i) for i in range(30)]
    assert all(5 <= e.ways <= sum(len(s) for s in e.support) <= most for e in found)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        *((FixedWays, {name: value}) for name in ("ways", "shots", "queries") for value in (0, -2)),
        (FixedWays, {"ways": 1}),
        *((VariousWays, {"max_support": value}) for value in (-1, 0, 4)),
        (VariousWays, {"max_ways": 4}),
        *((VariousWays, {name: 0}) for name in ("min_ways", "max_queries", "max_per_class")),
    ],
)
def test_samplers_of_no_task(sampler: type, options: dict[str, int]) -> None:
    with pytest.raises(PlanError, match=next(iter(options))):
        sampler(**options)


def test_negative_seeds() -> None:
    with pytest.raises(PlanError, match="seed: found -1"):
        sample_episode(made([30] * 12), FixedWays(), -1, 0)


def test_fixed_ways() -> None:
    for episode in episodes(made([30] * 12), FixedWays(), 20, seed=3):
        check(episode)
        assert [len(s) for s in episode.support] == [5] * 5 and [len(q) for q in episode.queries] == [15] * 5


def test_groups_do_not_cross_and_support_still_has_its_shots() -> None:
    for episode in episodes(made([30] * 6, frames=5), FixedWays(), 20):
        check(episode)
        assert [len(s) for s in episode.support] == [5] * 5


def test_a_task_depends_on_seed_and_number_only() -> None:
    data = made([30] * 12)
    first, again = sample_episode(data, FixedWays(), 4, 2), list(episodes(data, FixedWays(), 3, seed=4))[2]
    assert np.array_equal(np.concatenate(first.support), np.concatenate(again.support))
    other = sample_episode(data, FixedWays(), 4, 3)
    assert not np.array_equal(np.concatenate(first.support), np.concatenate(other.support))


def test_labels_number_the_ways() -> None:
    episode = sample_episode(made([9] * 7), FixedWays(3, 2, 4), 0, 0)
    images, labels = episode.support_set()
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (images[:, 0] // 9).astype(int).tolist() == np.repeat(episode.classes, 2).tolist()


def test_too_few_classes_or_groups() -> None:
    with pytest.raises(PlanError) as caught:
        sample_episode(made([5] * 8), FixedWays(), 0, 0)
    assert "0 classes of more than 5 samples" in str(caught.value)
    with pytest.raises(PlanError) as caught:
        sample_episode(made([10] * 8, frames=10), FixedWays(), 0, 0)
    assert "one group" in str(caught.value)


def test_a_class_of_one_group_is_left_out() -> None:
    whole = made([10] * 8, frames=2)
    groups = (np.zeros(10, np.int64), *whole.groups[1:])
    for sampler in (FixedWays(5, 3, 3), VariousWays()):
        for episode in episodes(replace(whole, groups=groups), sampler, 30):
            check(episode)
            assert 0 not in episode.classes


def test_a_digest_knows_the_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "one" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "one" / name / f"{i}.bmp")
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "one")
    first = from_folder(tmp_path / "one", 16).digest()
    assert from_folder(tmp_path / "elsewhere" / "one", 16).digest() == first
    assert from_folder(tmp_path / "one", 17).digest() != first
    file = tmp_path / "elsewhere" / "one" / "b" / "1.bmp"
    content = file.read_bytes()
    for place in (60, -1):
        changed = bytearray(content)
        changed[place] ^= 1
        file.write_bytes(changed)
        assert from_folder(tmp_path / "elsewhere" / "one", 16).digest() != first
    file.write_bytes(content)
    file.rename(file.with_name("9.bmp"))
    assert from_folder(tmp_path / "elsewhere" / "one", 16).digest() != first

    data = made([4, 4])
    images, labels = np.zeros((8, 1), np.float32), np.repeat(np.arange(2), 4)
    turned = from_arrays(images + np.arange(8)[:, None], labels[[0, 4, 1, 2, 3, 5, 6, 7]], name="made")
    assert made([4, 4]).digest() == data.digest()
    assert len({data.digest(), from_arrays(images, labels, name="made").digest(), turned.digest()}) == 3
    own = [replace(data, reader=lambda c, rows, k=k: np.full((len(rows), 1), k)) for k in (0, 1, 1)]
    assert own[0].digest() != own[1].digest() == own[2].digest()


def test_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("b", "a", "empty"):
        (tmp_path / name).mkdir()
        for i in range(0 if name == "empty" else 4):
            pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"0000{i // 2}_{i}.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    data = pickle.loads(pickle.dumps(from_folder(tmp_path, 16, group_separator="_")))
    assert data.classes == ("a", "b") and data.sizes == (4, 4)
    assert data.groups[0].tolist() == [0, 0, 1, 1]
    images = data.load(1, np.array([0, 3]))
    assert images.shape == (2, 3, 16, 16) and images.dtype == np.float32
    assert -1.0 <= images.min() < images.max() <= 1.0
    with pytest.raises(ImportModelError) as caught:
        from_folder(tmp_path / "a", 16)
    assert "one folder of images for each class" in str(caught.value)
