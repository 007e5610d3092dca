"""Meta-training: schedule, resumption to the last bit, what a damaged checkpoint says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fewshot.small import digits, small_backbone
from tvm_tinytrain.errors import CheckpointError, PlanError
from tvm_tinytrain.fewshot.datasets import Dataset, from_arrays
from tvm_tinytrain.fewshot.episodes import FixedWays
from tvm_tinytrain.fewshot.meta_train import MetaTrained, MetaTrainOptions, meta_train

OPTIONS = MetaTrainOptions(
    epochs=2, episodes=5, rate=1e-2, warmup_epochs=1, sampler=FixedWays(3, 2, 3), validation_episodes=2,
    checkpoint_every=2,
)  # fmt: skip


def dataset() -> Dataset:
    images, labels = digits()
    return from_arrays(images[::25], labels[::25], name="digits")


class Killed(Exception):
    pass


def run(folder: Path, stop_after: int | None = None) -> MetaTrained:
    def progress(done: int, loss: float) -> None:
        if done == stop_after:
            raise Killed

    return meta_train(small_backbone(), dataset(), folder, OPTIONS, validation=dataset(), progress=progress)


def test_the_papers_schedule() -> None:
    options = MetaTrainOptions()
    rates = [options.rate_at(e) for e in range(100)]
    assert rates[0] == 1e-6 and rates[5] == 5e-5 == max(rates) and rates[99] < 1.1e-6
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(tmp_path: Path, stop_after: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", stop_after)
    resumed = run(tmp_path / "killed")
    assert resumed.scale == whole.scale and resumed.history == whole.history and len(whole.history) == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_training_changes_the_weights_and_exports(tmp_path: Path) -> None:
    trained = run(tmp_path)
    before = small_backbone().state_dict()
    assert any(not torch.equal(before[k], v) for k, v in trained.model.state_dict().items())
    path = trained.export(tmp_path / "network.pt2", (1, 3, 32, 32))
    x = torch.ones(1, 3, 32, 32)
    assert torch.allclose(torch.export.load(path).module()(x), trained.model(x), atol=1e-6)


def test_checkpoints_of_other_options_or_torn_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, 3)
    other = MetaTrainOptions(epochs=3, episodes=5, warmup_epochs=1)
    with pytest.raises(CheckpointError) as caught:
        meta_train(small_backbone(), dataset(), tmp_path, other)
    assert "other options or data" in str(caught.value)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CheckpointError) as caught:
        run(tmp_path)
    assert "remove it to begin anew" in str(caught.value)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(PlanError):
        MetaTrainOptions(epochs=5, warmup_epochs=5)
