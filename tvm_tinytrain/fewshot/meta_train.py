"""The offline stage: ProtoNet with cosine distance over episodes of many classes, in PyTorch.

Defaults are TinyTrain's (ICML 2024, App. D and F.2), which are P>M>F's: 100 epochs of 2000 tasks, SGD with momentum
0.9, rate 1e-6 → 5e-5 in 5 epochs, then a cosine towards 1e-6; scale 10, learnt. The paper states neither ways nor
shots of meta-training; P>M>F's are 5-way with 15 queries.

A checkpoint holds weights, momentum, scale and the number of tasks done; task n, and what the network draws in it
(dropout), come from (seed, n). So a run that was interrupted and resumed ends with the weights, to the last bit, of one
that was not (same device, same number of threads).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from tvm_tinytrain.adaptation import QuerySource
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.errors import ArchiveError, CheckpointError, PlanError
from tvm_tinytrain.fewshot.datasets import Dataset
from tvm_tinytrain.fewshot.describing import describe_fields
from tvm_tinytrain.fewshot.episodes import Episode, FixedWays, Sampler, check_tasks, sample_episode
from tvm_tinytrain.fewshot.network import (
    check_network,
    embeddings_of,
    find_device,
    own_draws,
    structure_digest,
    weights_digest,
)
from tvm_tinytrain.fewshot.protonet import nearest_prototype_accuracy, prototypical_logits
from tvm_tinytrain.fewshot.tasks import check_augment
from tvm_tinytrain.whole_file import whole_file

_CHECKPOINT = "checkpoint.pt"
_BEST = "best.pt"
_VALIDATION_SEED = 1 << 20


@dataclass(frozen=True)
class MetaTrainOptions:
    """Schedule and tasks. rate: the highest, of the epoch after warm-up; warmup_rate: of the first epoch, if any warms up;
    least_rate: what the cosine falls to behind the last epoch. Each holds for an epoch; neither may lie above `rate`.

    warmup_epochs: None becomes the paper's 5, or all but the last epoch where there are fewer.
    augment: applied to the images of every task, or None. train_norms: batch statistics and their update while
    training; the paper does not say, P>M>F trains so. checkpoint_every: tasks; the end of an epoch is always kept.
    """

    epochs: int = 100
    episodes: int = 2000
    rate: float = 5e-5
    warmup_rate: float = 1e-6
    least_rate: float = 1e-6
    warmup_epochs: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    scale: float = 10.0
    sampler: Sampler = field(default_factory=FixedWays)
    validation_episodes: int = 100
    augment: QuerySource | None = None
    train_norms: bool = True
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "episodes", "validation_episodes", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise PlanError("meta-train", name, getattr(self, name), "1 or more", "the paper: 100 × 2000")
        if self.warmup_epochs is None:
            object.__setattr__(self, "warmup_epochs", min(5, self.epochs - 1))
        if not 0 <= (self.warmup_epochs or 0) < self.epochs:
            hint = "leave epochs for the cosine"
            raise PlanError("meta-train", "warmup_epochs", self.warmup_epochs, f"0 … {self.epochs - 1}", hint)
        for name in ("rate", "warmup_rate", "least_rate", "momentum", "weight_decay", "scale", "seed"):
            if not 0.0 <= getattr(self, name) < math.inf:
                allowed, hint = "a finite number, 0 or more", "the paper's rate is 5e-5"
                raise PlanError("meta-train", name, getattr(self, name), allowed, hint)
        if self.rate < (floor := max(self.warmup_rate, self.least_rate)):
            hint = "it is the highest: give more, or lower warmup_rate and least_rate with it"
            raise PlanError("meta-train", "rate", self.rate, f"{floor:g} or more", hint)
        if self.augment is not None:
            check_augment("meta-train", self.augment)

    def rate_at(self, epoch: int) -> float:
        """Learning rate of an epoch (from 0): linear warm-up, then half a cosine; it changes between epochs only."""
        warmup = self.warmup_epochs or 0  # which None has become above
        if epoch < warmup:
            return self.warmup_rate + (self.rate - self.warmup_rate) * epoch / warmup
        share = (epoch - warmup) / max(1, self.epochs - warmup)
        return self.least_rate + (self.rate - self.least_rate) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class EpochReport:
    """Mean loss and accuracy over an epoch's tasks; validation: accuracy on held-out classes, or None."""

    epoch: int
    epochs: int
    rate: float
    loss: float
    accuracy: float
    validation: float | None

    def text(self) -> str:
        """One line for a terminal."""
        held_out = "" if self.validation is None else f", held-out classes {100 * self.validation:.1f} %"
        return (
            f"epoch {self.epoch}/{self.epochs}, rate {self.rate:.2e}: loss {self.loss:.4f}, "
            f"accuracy {100 * self.accuracy:.1f} %{held_out}"
        )


@dataclass(frozen=True)
class MetaTrained:
    """The network of the best epoch (the last without validation), in eval mode on the CPU, and all epochs."""

    model: nn.Module
    scale: float
    history: tuple[EpochReport, ...]

    def export(self, path: str | Path, shape: tuple[int, ...]) -> Path:
        """Write a torch.export program for inputs of `shape` (batch 1), which `build` takes.

        Raises ShapeError where the network takes no such input, ArchiveError where the file cannot be written.
        """
        with torch.no_grad():
            embeddings_of(self.model, torch.zeros(shape))
        program = torch.export.export(self.model, (torch.zeros(shape),))
        try:
            torch.export.save(program, Path(path))
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            raise ArchiveError(
                "meta-train", str(path), error, "a writable path", "choose another folder"
            ) from error
        return Path(path)


def meta_train(
    model: nn.Module,
    dataset: Dataset,
    folder: str | Path,
    options: MetaTrainOptions | None = None,
    *,
    validation: Dataset | None = None,
    device: str = "cpu",
    origin: Mapping[str, Any] | None = None,
    progress: Callable[[int, float], object] | None = None,
    on_epoch: Callable[[EpochReport], object] | None = None,
) -> MetaTrained:
    """Train `model` (images → embeddings) in place, going on from the checkpoint in `folder` if there is one.

    origin: what else a checkpoint must agree in, as JSON has it; options, images, the network's modules and weights are known,
    but not the code of its ``forward``. progress: called after each task with the tasks done and
    the loss. An exception from it, or Ctrl-C, leaves the last checkpoint; the same call resumes, with the same model or one
    that begins with the same weights. Raises PlanError where a device, or a task of either data set, cannot be had, where
    nothing would be trained, and at the first loss or weight that is not finite; ShapeError or DTypeError where the network
    gives no float32 embedding of each image; CheckpointError where the checkpoint is damaged or was made with other
    options, images, layers, weights to begin with or origin, or none can be written.
    """
    options = options or MetaTrainOptions()
    where, root = find_device(device), Path(folder)
    for data, seed in ((dataset, options.seed), (validation, options.seed + _VALIDATION_SEED)):
        if data is not None:
            check_tasks("meta-train", data, options.sampler, seed)
    model.to(where)
    for data in (dataset, validation):
        if data is not None:
            with own_draws(where, options.seed):
                check_network(model, torch.from_numpy(data.load(0, np.arange(1))).to(where))
    start = _start(model, root)
    try:
        run = _Run(model, dataset, root, options, validation, where, {**(origin or {}), "weights": start})
        run.resume()
        total = options.epochs * options.episodes
        while run.done < total:
            loss = run.task()
            if progress is not None:
                progress(run.done, loss)
            if run.done % options.episodes == 0:
                report = run.end_epoch()
                if on_epoch is not None:
                    on_epoch(report)
            elif run.done % options.checkpoint_every == 0:
                run.save()
        return run.best()
    finally:
        _left[model] = root, start, weights_digest(model)


_left: WeakKeyDictionary[nn.Module, tuple[Path, str, str]] = WeakKeyDictionary()
"""Folder, digest of the weights to begin with, and digest of those that training left a model with."""


def _start(model: nn.Module, folder: Path) -> str:
    """Digest of the weights that training begins with: before it, where the model is as a training in this folder left it."""
    found = weights_digest(model)
    before, start, left = _left.get(model, (folder, found, found))
    return start if (before, left) == (folder, found) else found


class _Run:
    """State of a training: everything that the checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        folder: Path,
        options: MetaTrainOptions,
        validation: Dataset | None,
        device: torch.device,
        origin: Mapping[str, Any],
    ) -> None:
        self.model, self.dataset, self.folder, self.options = model, dataset, folder, options
        self.validation, self.device = validation, device
        self.scale = nn.Parameter(torch.tensor(options.scale, device=device))
        self.optimizer = torch.optim.SGD(
            [*model.parameters(), self.scale],
            options.rate,
            options.momentum,
            weight_decay=options.weight_decay,
        )
        self.done = 0
        self.sums = [0.0, 0.0]
        self.history: list[EpochReport] = []
        data = {"dataset": _named(dataset), "validation": None if validation is None else _named(validation)}
        known = {**describe_fields(options), **data, "layers": structure_digest(model)}
        self.identity = json.loads(json.dumps({**origin, **known}))

    def task(self) -> float:
        """Train on the next task and return its loss."""
        o = self.options
        self.model.train(o.train_norms)
        episode = sample_episode(self.dataset, o.sampler, o.seed, self.done)
        rate = o.rate_at(self.done // o.episodes)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        support, labels, queries, truth = self._tensors(episode, o.augment)
        with own_draws(self.device, o.seed, self.done, 2):
            embeddings = self.model(torch.cat([support, queries]))
        unit = Prototypical(scale=1.0)
        scores = self.scale * prototypical_logits(
            embeddings[: len(labels)], labels, embeddings[len(labels) :], unit
        )
        loss = nn.functional.cross_entropy(scores, truth)
        if not math.isfinite(float(loss.detach())):
            raise _not_finite(f"loss of task {self.done + 1}", self.folder)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1
        value = float(loss.detach())
        self.sums[0] += value
        self.sums[1] += float((scores.argmax(dim=1) == truth).float().mean())
        return value

    def _tensors(
        self, episode: Episode, augment: QuerySource | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        support, labels = episode.support_set()
        queries, truth = episode.query_set()
        if augment is not None:
            rng = np.random.default_rng([self.options.seed, self.done, 1])
            support, queries = augment(support, rng), augment(queries, rng)
        arrays = (support, labels, queries, truth)
        first, second, third, fourth = (torch.from_numpy(a).to(self.device) for a in arrays)
        return first, second, third, fourth

    def end_epoch(self) -> EpochReport:
        """Validate, report, keep the weights if they are the best so far, write the checkpoint."""
        o = self.options
        epoch = self.done // o.episodes
        self._check_weights()
        accuracy = None if self.validation is None else self._validate(self.validation)
        loss, trained = (s / o.episodes for s in self.sums)
        report = EpochReport(epoch, o.epochs, o.rate_at(epoch - 1), loss, trained, accuracy)
        before = [r.validation for r in self.history if r.validation is not None]
        self.history.append(report)
        self.sums = [0.0, 0.0]
        if accuracy is None or accuracy > max(before, default=-1.0):
            _write(
                self.folder / _BEST, {"model": self.model.state_dict(), "scale": float(self.scale.detach())}
            )
        self.save()
        return report

    def _validate(self, dataset: Dataset) -> float:
        self.model.eval()
        o = self.options
        found = []
        for index in range(o.validation_episodes):
            episode = sample_episode(dataset, o.sampler, o.seed + _VALIDATION_SEED, index)
            with own_draws(self.device, o.seed, index, 3):
                found.append(nearest_prototype_accuracy(self.model, *self._tensors(episode, None)))
        return float(np.mean(found))

    def _check_weights(self) -> None:
        """No file may hold what the last step has broken."""
        for name, value in {**self.model.state_dict(), "scale": self.scale.detach()}.items():
            if not bool(torch.isfinite(value).all()):
                raise _not_finite(f"{name} after task {self.done}", self.folder)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        self._check_weights()
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "scale": self.scale.detach(),
            "optimizer": self.optimizer.state_dict(),
            "done": self.done,
            "sums": self.sums,
            "history": [asdict(r) for r in self.history],
        }
        _write(self.folder / _CHECKPOINT, state)

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.folder / _CHECKPOINT
        if not path.exists():
            return
        state = _read(path, self.device, "remove it to begin anew")
        hint = "remove it, or choose another folder"
        before = state.get("identity")
        if before != self.identity:
            known = before if isinstance(before, dict) else {}
            keys = [k for k in {**self.identity, **known} if known.get(k) != self.identity.get(k)]
            found = f"other options or data: {', '.join(keys)}"
            raise CheckpointError("meta-train", str(path), found, "the same ones", hint)
        try:
            self.model.load_state_dict(state["model"])
            with torch.no_grad():
                self.scale.copy_(state["scale"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.done, self.sums = int(state["done"]), list(state["sums"])
            self.history = [EpochReport(**r) for r in state["history"]]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                "meta-train", str(path), error, "a checkpoint of this network", hint
            ) from error
        if self.history and self.validation is not None:
            self._best_state()  # an error now, not after the last epoch

    def best(self) -> MetaTrained:
        """What the folder holds as best; without validation that is what the last epoch ended with."""
        model, scale = self.model.cpu(), float(self.scale.detach())
        if self.validation is not None:
            state = self._best_state()
            model.load_state_dict(state["model"])
            scale = float(state["scale"])
        return MetaTrained(model.eval(), scale, tuple(self.history))

    def _best_state(self) -> dict[str, Any]:
        path = self.folder / _BEST
        hint = f"remove {self.folder / _CHECKPOINT}, and {_BEST} if it is there, to begin anew"
        state = _read(path, torch.device("cpu"), hint)
        model = state.get("model")
        shapes = {k: v.shape for k, v in self.model.state_dict().items()}
        found = {k: getattr(v, "shape", None) for k, v in model.items()} if isinstance(model, dict) else {}
        if found != shapes or not isinstance(state.get("scale"), float):
            allowed = "weights of this network"
            raise CheckpointError("meta-train", str(path), "something else", allowed, hint)
        return state


def _named(data: Dataset) -> list[Any]:
    return [data.name, list(data.sizes), data.digest()]


def _not_finite(thing: str, folder: Path) -> PlanError:
    hint = f"begin anew in another folder than {folder} with a lower rate, or check images and weights"
    return PlanError("meta-train", thing, "nan or infinity", "a finite number", hint)


def _write(path: Path, state: dict[str, Any]) -> None:
    try:
        with whole_file(path) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
        hint = "choose another folder"
        raise CheckpointError("meta-train", str(path), error, "a writable path", hint) from error


def _read(path: Path, device: torch.device, hint: str) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CheckpointError("meta-train", str(path), type(error).__name__, "a checkpoint", hint) from error
