"""``tinytrain evaluate``: options that it refuses before a library is built, and results files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.commands.refused import refused, write_classes
from tvm_tinytrain.cli import main
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.fewshot import methods
from tvm_tinytrain.fewshot.results import Results


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data, files that are no weights, and no builds."""

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("libraries were built")

    monkeypatch.setattr(methods, "build_methods", touched)
    write_classes(tmp_path / "data", images=3, classes=6)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "net.pt2").write_bytes(b"")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save(torch.zeros(1), tmp_path / "tensor.pt")
    torch.save({"model": 3}, tmp_path / "model.pt")
    torch.save({"a": 3, 4: torch.zeros(1)}, tmp_path / "keys.pt")
    np.save(tmp_path / "array.npy", np.zeros(3))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--ways 0", "ways: found 0"),
        ("--ways -1", "ways: found -1"),
        ("--shots 0", "shots: found 0"),
        ("--shots -2", "shots: found -2"),
        ("--various --max-support 0", "max_support: found 0; allowed 5 or more"),
        ("--various --ways 3", "--ways: found 3 beside --various"),
        ("--various --shots 5", "--shots: found 5 beside --various"),
        ("--max-support 100", "--max-support: found 100 without --various"),
        ("--seed -1", "--seed: found -1"),
        ("--size 0", "size: found 0"),
        ("--size -4", "size: found -4"),
        ("--episodes 0", "--episodes: found 0"),
        ("--episodes -3", "--episodes: found -3"),
        ("--processes 0", "--processes: found 0"),
        ("--processes -5", "--processes: found -5"),
        ("--iterations -1", "--iterations: found -1"),
        ("--group-separator=", "group separator: found an empty text"),
        ("--state {}/data", "data: found a folder; allowed a file's path"),
        ("--state {}/file/x.json", "file: found a file; allowed a folder"),
    ],
)
def test_options(root: Path, options: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--network", "mcunet", "--data", "{}/data", *options.split()]
    refused(capsys, root, *words, says=says)


def test_one_format(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", "--network", "mcunet", "--data", str(root / "data"), "--format", "csv", "--json"])
    assert "--json: not allowed with argument --format" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("file", "a state dict"),
        ("array.npy", "a state dict"),
        ("list.pt", "found list; allowed a state dict"),
        ("tensor.pt", "found Tensor; allowed a state dict"),
        ("model.pt", "found int; allowed a state dict"),
        ("keys.pt", "other values than tensors by name"),
        ("data", "a state dict"),
    ],
)
def test_weights(root: Path, weights: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--network", "mcunet", "--data", "{}/data", "--size", 8]
    refused(capsys, root, *words, "--weights", "{}/" + weights, says=says)


def write_network(path: Path, channels: int, height: int, width: int) -> None:
    """A .pt2 whose output is an embedding."""
    layers = (torch.nn.Conv2d(channels, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    network = torch.nn.Sequential(*layers, torch.nn.Flatten())
    torch.export.save(torch.export.export(network.eval(), (torch.zeros(1, channels, height, width),)), path)


@pytest.mark.host_compiler
def test_images_have_the_size_of_a_networks_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / "net.pt2", 3, 20, 20)
    write_classes(tmp_path / "data", images=3, classes=3)
    words = ["evaluate", "--network", "net.pt2", "--data", "data", "--ways", "3", "--shots", "2", "--json"]
    few = ["--methods", "none,lastlayer", "--episodes", "1", "--rates", "0", "--iterations", "1"]
    for size in ([], ["--size", "20"]):
        assert main([*words, *few, "--processes", "1", *size]) == 0
        assert {row["method"] for row in json.loads(capsys.readouterr().out)} == {"none", "lastlayer"}


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((3, 20, 20), ["--size", 64], "--size: found 64; allowed 20, the network's input"),
        ((1, 20, 20), [], "input: found [[1, 1, 20, 20]]; allowed one colour image, [1, 3, size, size]"),
        ((1, 20, 20), [], "export a network for images of three channels"),
        ((3, 20, 24), [], "input: found [[1, 3, 20, 24]]"),
        ((3, 20, 24), [], "export a network for images as wide as high"),
    ],
)
def test_images_that_a_networks_file_does_not_take(
    root: Path,
    shape: tuple[int, int, int],
    options: list[object],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_network(root / "net.pt2", *shape)
    refused(capsys, root, "evaluate", "--network", "{}/net.pt2", "--data", "{}/data", *options, says=says)


@pytest.mark.parametrize("network", ["net.pt2", "net.json"])
def test_weights_beside_a_file(root: Path, network: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--network", "{}/" + network, "--weights", "{}/list.pt", "--data", "{}/data"]
    refused(capsys, root, *words, says="the file holds the network's own")


@pytest.mark.parametrize(
    "changed",
    [
        {"options": []},
        {"options": None},
        {"options": {}},
        {"records": [5]},
        {"held_out": [{"losses": 3}]},
    ],
)
def test_files_that_are_no_results(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "state.json"
    whole = {"format": 2, "options": {"seed": 0}, "records": [], "held_out": []}
    path.write_text(json.dumps(whole))
    assert Results.load(path, {"seed": 0}).records == []
    path.write_text(json.dumps({**whole, **changed}))
    with pytest.raises(ArchiveError):
        Results.load(path, {"seed": 0})


def test_a_folder_is_no_results_file(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError):
        Results.load(tmp_path, {})
