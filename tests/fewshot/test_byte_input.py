"""Adaptation of libraries whose input is bytes: what the host writes is bytes, and trains what floats would train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tvm_tinytrain as tt
from tests.building.adaptive_net import SHAPE, build
from tests.compiled import loaded
from tvm_tinytrain.adaptation import DiffAugment
from tvm_tinytrain.adaptation.augment import from_bytes, to_bytes
from tvm_tinytrain.cli import main
from tvm_tinytrain.errors import DTypeError, ShapeError
from tvm_tinytrain.micro.in_process import InProcess

BYTES, FLOATS = tt.MemoryOptions(input_dtype="uint8"), tt.MemoryOptions()
UPDATE = tt.TaskAdaptive(candidates=2)
LABELS = np.arange(6) // 2


def images() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (6, *SHAPE[1:])).astype(np.uint8)


def unchanged(samples: np.ndarray, _: np.random.Generator) -> np.ndarray:
    return samples


def prototypical(memory: tt.MemoryOptions) -> tt.TrainModule:
    return build(update=UPDATE, loss=tt.Prototypical(), accumulate=True, memory=memory)


@pytest.fixture(scope="module")
def module() -> tt.TrainModule:
    return prototypical(BYTES)


@pytest.fixture(scope="module")
def library(module: tt.TrainModule) -> Iterator[InProcess]:
    with loaded(module, cflags=("-O1",)) as compiled:
        yield compiled


@pytest.mark.host_compiler
def test_prototypes_of_bytes_are_those_of_floats(library: InProcess) -> None:
    given = {"iterations": 3, "lr": 0.01, "queries": unchanged}
    result = library.adapt(images(), LABELS, **given)
    found = library.classify(result, images())
    with loaded(prototypical(FLOATS), cflags=("-O1",)) as other:
        expected = other.adapt(from_bytes(images()), LABELS, **given)
        np.testing.assert_array_equal(found, other.classify(expected, from_bytes(images())))
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-4)
    assert result.plan == expected.plan and result.losses[-1] < result.losses[0]


@pytest.mark.host_compiler
def test_pseudo_queries_are_bytes(library: InProcess) -> None:
    seen: list[np.ndarray] = []

    def source(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(DiffAugment()(samples, rng))
        return seen[-1]

    result = library.adapt(images(), LABELS, iterations=2, lr=0.01, queries=source)
    assert {made.dtype for made in seen} == {np.dtype(np.uint8)} and (seen[0] != images()).any()
    assert library.adapt(images().astype(np.int64), LABELS, iterations=2, lr=0.01).losses == result.losses


@pytest.mark.host_compiler
def test_labels_of_bytes_teach_what_those_of_floats_teach() -> None:
    results = []
    for memory, samples in ((BYTES, images()), (FLOATS, from_bytes(images()))):
        with loaded(build(update=tt.LastLayer(), memory=memory), cflags=("-O1",)) as compiled:
            results.append(compiled.learn(samples, LABELS, iterations=3, lr=0.01))
    np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4)
    assert results[0].losses[-1] < results[0].losses[0]


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (from_bytes(images()), "samples: found float32; allowed uint8, 0 to 255; give the images' bytes"),
        (images().astype(np.int64) + 100, "samples: found 100 to 355; allowed uint8, 0 to 255"),
        (images().astype(np.int8), "samples: found -128 to 127; allowed uint8, 0 to 255"),
        (images() > 100, "samples: found bool; allowed uint8"),
    ],
)
def test_what_are_no_bytes_is_refused(library: InProcess, samples: Any, found: str) -> None:
    with pytest.raises(DTypeError, match=f"adapt: {found}"):
        library.adapt(samples, LABELS)
    result = library.adapt(images(), LABELS, iterations=0)
    with pytest.raises(DTypeError, match=f"adapt: {found}"):
        library.classify(result, samples)


@pytest.mark.host_compiler
def test_sources_of_floats_are_refused(library: InProcess) -> None:
    with pytest.raises(DTypeError, match="pseudo-queries: found float32; allowed uint8"):
        library.adapt(images(), LABELS, queries=lambda samples, _: from_bytes(samples))
    with pytest.raises(ShapeError, match=r"samples: found \(6, 12, 12\)"):
        library.adapt(images()[:, 0], LABELS)


def test_bytes_are_augmented_as_their_values_are() -> None:
    how, samples = DiffAugment(probability=1.0), images()
    changed = how(samples, np.random.default_rng(4))
    expected = how(from_bytes(samples), np.random.default_rng(4)).clip(-1, 1)
    assert changed.dtype == np.uint8
    assert np.abs(from_bytes(changed) - expected).max() <= 0.5001 / 127.5
    np.testing.assert_array_equal(to_bytes(from_bytes(np.arange(256, dtype=np.uint8))), np.arange(256))
    np.testing.assert_array_equal(DiffAugment(probability=0.0)(samples, np.random.default_rng(4)), samples)
    with pytest.raises(DTypeError, match="images: found int64; allowed float32, uint8"):
        how(samples.astype(np.int64), np.random.default_rng(4))


@pytest.mark.host_compiler
def test_the_command_line_gives_pixels_as_they_are(
    module: tt.TrainModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders of images and .npz files of bytes; floats are refused."""
    module.export(tmp_path / "net.tar")
    for i, pixels in enumerate(images()):
        folder = tmp_path / "pictures" / f"class{LABELS[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i}.png")
    np.savez(tmp_path / "bytes.npz", images=images(), labels=LABELS)
    words = ["adapt", str(tmp_path / "net.tar"), "--board", "host", "--iterations", "2"]
    said = []
    for support in ("pictures", "bytes.npz"):
        path = str(tmp_path / support)
        assert main([*words, "--support", path, "--query", path]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "loss" in said[0] and "query accuracy" in said[0]
    for name, values in (("floats", from_bytes(images())), ("large", images().astype(np.int32) + 1)):
        np.savez(tmp_path / f"{name}.npz", images=values, labels=LABELS)
        assert main([*words, "--support", str(tmp_path / f"{name}.npz")]) == 1
    refused = capsys.readouterr().err
    assert "images float32[6, 3, 12, 12]" in refused and "allowed images uint8[n, 3, 12, 12]" in refused
    assert "found 1 to 256; allowed 0 to 255" in refused
