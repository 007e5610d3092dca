"""``tinytrain meta-train``: what it refuses before an epoch is trained, and what another command's checkpoint says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.refused import refused, write_classes
from tvm_tinytrain.fewshot import meta_train as training


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_classes(tmp_path / "data", images=7, classes=5)
    write_classes(tmp_path / "few", images=2, classes=5)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "made" / "network.pt2").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("-o {}/file", "file: found a file; allowed a folder"),
        ("-o {}/file/below", "file: found a file; allowed a folder"),
        ("-o {}/made", "network.pt2: found a folder"),
        ("-o {}/new --ways 0", "ways: found 0"),
        ("-o {}/new --shots 0", "shots: found 0"),
        ("-o {}/new --epochs 0", "epochs: found 0"),
        ("-o {}/new --epochs 3 --warmup 3", "--warmup: found 3; allowed 0 … 2; leave some of --epochs 3 for"),
        ("-o {}/new --seed -1", "seed: found -1"),
        ("-o {}/new --rate -5", "rate: found -5"),
        ("-o {}/new --rate nan", "rate: found nan"),
        ("-o {}/new --size 0", "size: found 0"),
        ("-o {}/new --device foo", "device foo: found"),
        ("-o {}/new --device cuda:99", "device cuda:99: found"),
        ("-o {}/new --validate {}/few", "few, 5-way 5-shot: found 0 classes of more than 5 samples"),
        ("-o {}/new --data {}/few", "few, 5-way 5-shot: found 0 classes of more than 5 samples"),
        ("-o {}/new --weights {}/file", "file: found"),
    ],
)
def test_options(root: Path, options: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["meta-train", "--network", "mcunet", "--size", "8", "--data", "{}/data", *options.split()]
    refused(capsys, root, *words, says=says)


def test_a_checkpoint_says_where_the_network_is_from(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Begun with one network and image size; the same folder is refused for others."""

    def stopped(*_: object) -> float:
        raise KeyboardInterrupt

    def words(network: str, size: int) -> list[object]:
        return ["meta-train", "--network", network, "--size", size, "--data", "{}/data", "-o", "{}/new"]

    saved = training._Run.resume
    monkeypatch.setattr(training._Run, "resume", lambda run: (run.save(), stopped()))
    from tvm_tinytrain.cli import main

    assert main([str(w).replace("{}", str(root)) for w in words("mcunet", 8)]) == 130
    monkeypatch.setattr(training._Run, "resume", saved)
    refused(capsys, root, *words("mcunet", 16), says="other options or data: size, dataset;")
    refused(capsys, root, *words("proxyless-nas", 8), says="other options or data: network, weights, layers;")
