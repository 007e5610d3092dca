"""``tinytrain adapt``: samples and options that it refuses before a board is built, and support of one shot."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.commands.refused import refused, write_classes
from tvm_tinytrain import micro
from tvm_tinytrain.cli_adapt import read_samples

SHAPE = (3, 4, 4)


def tensor(name: str, role: str, shape: list[int], dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "role": role, "shape": shape, "dtype": dtype}


def metadata(loss: str = "labels") -> dict[str, Any]:
    """Of an adaptive library that tells two classes, learns two values, or prototypes."""
    label = {
        "labels": tensor("label", "label", [1], "int32"),
        "values": tensor("label", "label", [1, 2]),
        "prototypes": tensor("seed", "label", [1, 2]),
    }[loss]
    parts = [tensor("x", "input", [1, *SHAPE]), label, tensor("output", "output", [1, 2])]
    return {"tensors": parts, "adaptive": {}}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Samples of all kinds; no archive is read, and the board must not be touched."""

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the board was built")

    module = import_module("tvm_tinytrain.build")  # the package's own `build` is the function
    monkeypatch.setattr(module, "load", lambda path: SimpleNamespace(metadata=metadata(path.stem)))
    monkeypatch.setattr(micro, "Session", touched)
    write_classes(tmp_path / "two")
    write_classes(tmp_path / "three", classes=3)
    write_classes(tmp_path / "alone", classes=1)
    write_classes(tmp_path / "shot", images=1)
    (tmp_path / "folder").mkdir()
    images, labels = np.zeros((4, *SHAPE), np.float32), np.arange(4) // 2
    np.save(tmp_path / "plain.npy", images)
    for name, changed in {
        "good": {},
        "single": {"labels": labels * 0},
        "none": {"images": images[:0], "labels": labels[:0]},
        "nan": {"images": images + np.nan},
        "text": {"images": images.astype(str)},
        "negative": {"labels": labels - 1},
        "values": {"labels": images[:, 0, 0, :2]},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **{"images": images, "labels": labels, **changed})
    (tmp_path / "torn.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    (tmp_path / "empty.npz").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("support", "says"),
    [
        ("plain.npy", "arrays images and labels"),
        ("torn.npz", "arrays images and labels"),
        ("empty.npz", "arrays images and labels"),
        ("text.npz", "images <U"),
        ("nan.npz", "nan or infinity"),
        ("single.npz", "found 1 classes; allowed 2 or more; two are needed"),
        ("none.npz", "found 0 classes; allowed 2 or more"),
        ("alone", "1 classes of images"),
        ("three", "labels 0 … 2; allowed 0 … 1; the network has 2 classes"),
        ("negative.npz", "labels -1 … 0"),
    ],
)
def test_samples_that_teach_nothing(
    root: Path, support: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, root, "adapt", "labels.tar", "--support", "{}/" + support, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--iterations 0 -o {}/c.tt", "--iterations 0: nothing is trained"),
        ("--lr 0 -o {}/c.tt", "--lr 0: nothing is trained"),
        ("--iterations -1", "--iterations: found -1"),
        ("--seed -1", "--seed: found -1"),
        ("--lr nan", "--lr: found nan"),
        ("-o {}/folder", "folder: found a folder; allowed a file's path"),
        ("--record {}/folder", "folder: found a folder; allowed a file's path"),
        ("-o {}/plain.npy/c.tt", "plain.npy: found a file; allowed a folder"),
    ],
)
def test_options(root: Path, options: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapt", "labels.tar", "--support", "{}/two", *options.split()]
    refused(capsys, root, *words, says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--support {}/two", "found a folder of classes; allowed an .npz file of images and labels"),
        ("--support {}/good.npz", "allowed numbers[n, 2]; this loss takes the values"),
        ("--support {}/nan.npz", "nan or infinity"),
        ("--support {}/values.npz --query {}/values.npz", "--query: found a loss of values"),
    ],
)
def test_what_is_no_target_of_a_loss_of_values(
    root: Path, options: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, root, "adapt", "values.tar", *options.split(), says=says)


@pytest.mark.parametrize(
    ("archive", "support"), [("labels", "two"), ("prototypes", "three"), ("values", "values.npz")]
)
def test_good_samples_reach_the_board(root: Path, archive: str, support: str) -> None:
    from tvm_tinytrain.cli import main

    with pytest.raises(AssertionError, match="the board was built"):
        main(["adapt", f"{archive}.tar", "--support", str(root / support)])


def test_support_of_one_shot(root: Path) -> None:
    images, labels, names = read_samples(root / "shot", SHAPE)
    assert images.shape == (2, *SHAPE) and labels.tolist() == [0, 1] and names == ("class0", "class1")
