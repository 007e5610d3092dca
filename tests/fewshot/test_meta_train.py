"""Meta-training: schedule, resumption to the last bit, what a damaged checkpoint says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fewshot.small import digits, small_backbone
from tvm_tinytrain.errors import CheckpointError, DTypeError, PlanError, ShapeError
from tvm_tinytrain.fewshot.datasets import Dataset, from_arrays
from tvm_tinytrain.fewshot.episodes import FixedWays
from tvm_tinytrain.fewshot.meta_train import MetaTrained, MetaTrainOptions, meta_train
from tvm_tinytrain.fewshot.network import weights_digest

OPTIONS = MetaTrainOptions(
    epochs=2, episodes=5, rate=1e-2, warmup_epochs=1, sampler=FixedWays(3, 2, 3), validation_episodes=2,
    checkpoint_every=2,
)  # fmt: skip


def dataset() -> Dataset:
    images, labels = digits()
    return from_arrays(images[::25], labels[::25], name="digits")


class Killed(Exception):
    pass


def run(folder: Path, stop_after: int | None = None, **changed: Any) -> MetaTrained:
    def progress(done: int, loss: float) -> None:
        if done == stop_after:
            raise Killed

    given: dict[str, Any] = {"dataset": dataset(), "validation": dataset(), "options": OPTIONS, **changed}
    return meta_train(given.pop("model", None) or small_backbone(), folder=folder, progress=progress, **given)


def test_the_papers_schedule() -> None:
    options = MetaTrainOptions()
    rates = [options.rate_at(e) for e in range(100)]
    assert rates[0] == 1e-6 and rates[5] == 5e-5 == max(rates) and rates[99] < 1.1e-6
    assert rates[:6] == sorted(rates[:6]) and rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize("rate", [0.0, 1e-7])
def test_no_epoch_trains_above_the_highest_rate(rate: float) -> None:
    with pytest.raises(PlanError, match=r"rate: found .*allowed 1e-06 or more; .*least_rate"):
        MetaTrainOptions(rate=rate)
    lower = MetaTrainOptions(rate=rate, warmup_rate=rate / 2, least_rate=rate / 2)
    assert max(lower.rate_at(e) for e in range(100)) == rate


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(tmp_path: Path, stop_after: int) -> None:
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", stop_after)
    resumed = run(tmp_path / "killed")
    assert resumed.scale == whole.scale and resumed.history == whole.history and len(whole.history) == 2
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_same_model_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """As in a notebook: training in place has changed the weights that it began with."""
    whole, model = run(tmp_path / "whole"), small_backbone()
    with pytest.raises(Killed):
        run(tmp_path / "killed", 3, model=model)
    resumed = run(tmp_path / "killed", model=model)
    assert resumed.history == whole.history
    assert run(tmp_path / "killed", model=model).history == whole.history
    with pytest.raises(CheckpointError, match="weights"):
        run(tmp_path / "whole", model=model)


def test_dropout_draws_from_the_seed_and_the_task(tmp_path: Path) -> None:
    def model() -> torch.nn.Module:
        return torch.nn.Sequential(small_backbone(), torch.nn.Dropout(0.5), torch.nn.Flatten())

    first = model()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    whole = run(tmp_path / "whole", model=first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    with pytest.raises(Killed):
        run(tmp_path / "killed", 3, model=model())
    resumed = run(tmp_path / "killed", model=model())
    assert resumed.history == whole.history != run(tmp_path / "without").history
    assert weights_digest(resumed.model) == weights_digest(whole.model)


def test_an_embedding_of_any_shape(tmp_path: Path) -> None:
    """Whatever follows the first dimension, as `evaluate` takes it."""
    column = torch.nn.Sequential(small_backbone(), torch.nn.Unflatten(1, (-1, 1, 1)))
    assert run(tmp_path / "column", model=column).history == run(tmp_path / "vector").history


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def frozen() -> torch.nn.Module:
    return small_backbone().requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (torch.nn.Sequential(small_backbone(), Two()), ShapeError, "found tuple"),
        (torch.nn.Conv2d(1, 4, 3), ShapeError, r"network on images \[1, 3, 32, 32\]"),
        (
            torch.nn.Sequential(small_backbone(), torch.nn.Flatten(0)),
            ShapeError,
            r"allowed a tensor \[n, …\]",
        ),
        (small_backbone().double(), DTypeError, "found float64; allowed float32"),
        (frozen(), PlanError, "trained parameters: found none"),
        (torch.nn.Flatten(), PlanError, "trained parameters: found none"),
    ],
    ids=["tuple", "channels", "shape", "float64", "frozen", "none"],
)
def test_networks_that_cannot_be_trained(
    tmp_path: Path, model: torch.nn.Module, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        run(tmp_path / "new", model=model)
    assert not (tmp_path / "new").exists()


def test_training_changes_the_weights_and_exports(tmp_path: Path) -> None:
    trained = run(tmp_path)
    before = small_backbone().state_dict()
    assert any(not torch.equal(before[k], v) for k, v in trained.model.state_dict().items())
    path = trained.export(tmp_path / "network.pt2", (1, 3, 32, 32))
    x = torch.ones(1, 3, 32, 32)
    assert torch.allclose(torch.export.load(path).module()(x), trained.model(x), atol=1e-6)
    with pytest.raises(ShapeError, match=r"network on images \[1, 1, 32, 32\]"):
        trained.export(path, (1, 1, 32, 32))


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


@pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (3, 2), (6, 5), (100, 5)])
def test_the_warm_up_leaves_an_epoch_where_it_is_not_given(epochs: int, warmup: int) -> None:
    options = MetaTrainOptions(epochs=epochs)
    assert options == MetaTrainOptions(epochs=epochs, warmup_epochs=warmup)
    assert options.rate_at(warmup) == options.rate


@pytest.mark.parametrize(
    "name", ["rate", "warmup_rate", "least_rate", "momentum", "weight_decay", "scale", "seed"]
)
@pytest.mark.parametrize("value", [-5, float("nan"), float("inf")])
def test_rates_that_are_none(name: str, value: float) -> None:
    with pytest.raises(PlanError, match=f"{name}: found"):
        replace(OPTIONS, **{name: value})


@pytest.mark.parametrize("device", ["foo", "", "meta", "cuda:99"])
def test_devices_that_are_not_there(tmp_path: Path, device: str) -> None:
    with pytest.raises(PlanError, match=f"device {device}: "):
        run(tmp_path / "new", device=device)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def renamed() -> Dataset:
    return replace(dataset(), classes=tuple("abcdefghij"))


def darker() -> Dataset:
    images, labels = digits()
    return from_arrays(images[::25] * np.float32(0.5), labels[::25], name="digits")


def other_weights() -> torch.nn.Module:
    model = small_backbone()
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    return model


def other_activations() -> torch.nn.Module:
    """The same weights by the same names."""
    model = small_backbone()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU6):
                setattr(module, name, torch.nn.Sigmoid())
    return model


def partly_frozen() -> torch.nn.Module:
    model = small_backbone()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"origin": {"network": "other"}}, "network"),
        ({"origin": {"size": 32}}, "size"),
        ({"model": other_weights()}, "weights"),
        ({"model": other_activations()}, "layers"),
        ({"model": partly_frozen()}, "layers"),
        ({"dataset": renamed()}, "dataset"),
        ({"dataset": darker()}, "dataset"),
        ({"validation": darker()}, "validation"),
        ({"validation": renamed()}, "validation"),
        ({"validation": None}, "validation"),
        ({"options": replace(OPTIONS, rate=2e-2)}, "rate"),
    ],
)
def test_a_checkpoint_of_something_else(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(Killed):
        run(tmp_path, 3)
    with pytest.raises(CheckpointError, match=f"other options or data: {says};"):
        run(tmp_path, **changed)


def test_weights_have_a_digest() -> None:
    model = small_backbone()
    before = weights_digest(model)
    assert before == weights_digest(small_backbone())
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert weights_digest(model) != before


@pytest.mark.parametrize("broken", ["images", "step"])
def test_training_ends_at_the_first_value_that_is_not_finite(tmp_path: Path, broken: str) -> None:
    """Images without values break a loss; a rate without bounds breaks the weights after the last one."""
    changed: dict[str, Any] = {"validation": None}
    if broken == "images":
        images, labels = digits()
        changed["dataset"] = from_arrays(images[::25] * np.float32("nan"), labels[::25], name="digits")
    else:
        changed["options"] = replace(OPTIONS, epochs=1, episodes=1, warmup_epochs=0, rate=1e38, scale=1e30)
    with pytest.raises(PlanError, match="found nan or infinity"):
        run(tmp_path, **changed)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", [None, {}, {"model": {}, "scale": 1.0}, {"model": 3, "scale": 1.0}])
def test_best_weights_that_are_lost(tmp_path: Path, state: dict[str, Any] | None) -> None:
    run(tmp_path)
    best = tmp_path / "best.pt"
    if state is None:
        best.unlink()
    else:
        torch.save(state, best)
    with pytest.raises(CheckpointError, match=r"remove .*checkpoint\.pt, and best\.pt"):
        run(tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    best.unlink(missing_ok=True)
    assert len(run(tmp_path).history) == 2


def test_without_validation_the_last_weights_are_the_best(tmp_path: Path) -> None:
    whole = run(tmp_path, validation=None)
    (tmp_path / "best.pt").unlink()
    again = run(tmp_path, validation=None)
    assert again.scale == whole.scale and again.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


@pytest.mark.parametrize("part", ["dataset", "validation"])
def test_data_that_make_no_task_are_found_before_training(tmp_path: Path, part: str) -> None:
    images, labels = digits()
    few = from_arrays(images[::250], labels[::250], name="few")
    with pytest.raises(PlanError, match="few, 3-way 2-shot"):
        run(tmp_path, **{part: few})
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="a writable path"):
        run(tmp_path / "file")
