"""Training on labelled samples by the library's own loss: for a task-adaptive library with Fisher pass and selection before it.

The loss does not couple samples, so each of them is one call. A library that keeps gradients takes a step of the optimizer per
iteration; one whose ``step`` applies them where they are made takes one per sample. The device does the same without a host
(``targets/runtime/adapt/tt_session.h``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.adaptation.augment import QuerySource, Samples
from tvm_tinytrain.adaptation.library import AdaptableLibrary, LibraryCalls
from tvm_tinytrain.errors import PlanError, ShapeError
from tvm_tinytrain.own_tensors import HYPER, SEED
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import FisherMap

Labels = npt.NDArray[Any]
"""Class numbers, integers[n], or float targets[n, *shape of the label]."""


@dataclass(frozen=True)
class LearnResult:
    """What a training did.

    losses: mean over the samples, by iteration; the last is nan where the steps made weights that are no finite numbers.
    fisher, plan: of a task-adaptive library, else None.
    """

    losses: tuple[float, ...]
    fisher: FisherMap | None = field(default=None, repr=False)
    plan: UpdatePlan | None = None
    seconds: float = field(default=0.0, compare=False)


def learn(
    library: AdaptableLibrary,
    images: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    iterations: int = 40,
    lr: float = 1e-3,
    queries: QuerySource | None = None,
    plan: UpdatePlan | None = None,
    seed: int = 0,
    progress: Callable[[int, float], object] | None = None,
) -> LearnResult:
    """Train a library on labelled samples: classes by turns, float targets in the order given.

    Ctrl-C ends it: the steps that were taken stay, the gradients of the unfinished pass are dropped.

    Parameters
    ----------
    library
        Built with any loss but ``Prototypical()``. Training goes on from the weights it has; a task-adaptive library is
        released first, so that it starts from the network's own.
    images
        float32[n, *shape of one sample]; in the range that the network was trained on. Bytes, uint8, for a library that was
        built with ``MemoryOptions(input_dtype="uint8")``.
    labels
        For cross-entropy integers[n]: outputs of the network. For a loss whose label is float32 (MSE, binary cross-entropy) the
        targets, numbers[n, *shape of the output without its axis of one]; [n] where that is a single value.
    iterations, lr
        Passes over the samples, and the optimizer's rate for them; afterwards the library has its own again. Where either is 0
        nothing is trained or selected.
    queries
        Changes the samples before the Fisher pass and before each iteration, e.g. ``DiffAugment()``; default: as they are.
    plan
        Install this plan into a task-adaptive library instead of letting it select.
    seed
        Of what `queries` draws.
    progress
        Called after each iteration with its number, from 1, and its loss.

    Returns
    -------
    LearnResult
        Losses, and the plan that a task-adaptive library trained.

    Raises
    ------
    PlanError, ShapeError, DTypeError, BudgetError
        The library does not train labels, or an option is out of its range; samples or labels do not fit; nothing fits the
        library's budget.
    """
    start = time.perf_counter()
    learner = _Learner(library)
    learner.check_options(iterations, lr, queries, seed, progress)
    learner.check_plan(plan)
    samples, targets = learner.pairs(images, labels)
    if iterations == 0 or lr == 0.0:
        return LearnResult(())
    if learner.is_classes:
        order = _by_turns(targets)
        samples, targets = samples[order], targets[order]
    rng = np.random.default_rng(seed)

    def draw() -> Samples:
        return samples if queries is None else learner.drawn(queries, samples, rng)

    fisher, used = learner.choose(draw, targets, plan) if learner.is_adaptive else (None, None)
    losses: list[float] = []
    with learner.learning_rate(lr):
        try:
            for iteration in range(iterations):
                losses.append(learner.iterate(draw(), targets))
                if progress is not None:
                    progress(iteration + 1, losses[-1])
        except KeyboardInterrupt:
            learner.forget()
            raise
    if not learner.is_finite():
        losses[-1] = math.nan
    return LearnResult(tuple(losses), fisher, used, time.perf_counter() - start)


def _by_turns(labels: Labels) -> npt.NDArray[np.intp]:
    """An order in which the first sample of every class comes first, then the second ones."""
    turn = np.zeros(len(labels), np.int64)
    for value in np.unique(labels):
        turn[labels == value] = np.arange(int((labels == value).sum()))
    return np.lexsort((labels, turn))


def float_targets(
    stage: str, thing: str, values: npt.ArrayLike, count: int, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Targets float32[count, *shape] of a loss whose label is float32; without an axis of one in front, or [count] for one value each.

    ShapeError where they are others, or there are none; class numbers are no targets of several values. PlanError for nan and infinity.
    """
    inner = shape[1:] if shape[:1] == (1,) else shape
    one = math.prod(shape) == 1
    wanted = "numbers[n]" if one else f"numbers[n, {str(list(inner))[1:-1]}]"
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:  # of different shapes, or a graph's tensor
        raise ShapeError(stage, thing, error, wanted, "give one array of numbers") from error
    allowed = {(count, *shape), (count, *inner)} | ({(count,)} if one else set())
    if array.shape not in allowed or array.dtype.kind not in "fiub" or not count:
        found = f"{count} samples, labels {array.dtype}{list(array.shape)}"
        hint = "this loss takes the values that the output should have"
        if array.shape == (count,) and array.dtype.kind in "iu":
            hint = f"{hint}; class numbers are for CrossEntropy()"
        raise ShapeError(stage, thing, found, wanted, hint)
    with np.errstate(over="ignore"):  # what overflows is not finite, which is refused
        targets = array.astype(np.float32).reshape(count, *shape)
    if not np.isfinite(targets).all():
        raise PlanError(stage, thing, "nan or infinity", "finite numbers", "check where they come from")
    return targets


class _Learner(LibraryCalls):
    """The calls of a training by labels."""

    stage = "learn"

    def __init__(self, library: AdaptableLibrary) -> None:
        super().__init__(library)
        self._applies = "apply" in library.entries
        self._train = "accumulate" if self._applies else "step"
        found = [f"no {self._train}"] if self._train not in library.entries else []
        found += ["a loss of prototypes"] if SEED in library.tensors else []
        if found or HYPER not in library.tensors:
            hint = "build it with an update that trains something, and a loss of labels"
            allowed = "step, or accumulate and apply, from labels"
            raise PlanError(self.stage, "library", ", ".join(found) or f"no {HYPER}", allowed, hint)
        label = next(name for name, t in library.tensors.items() if t.role == "label")
        self._label, self._label_shape = label, tuple(library.tensors[label].shape)
        self._label_dtype: np.dtype[Any] = np.dtype(library.tensors[label].dtype)

    @property
    def is_classes(self) -> bool:
        """Whether a label is the number of a class; otherwise it is what the output should be."""
        return np.issubdtype(self._label_dtype, np.integer)

    def pairs(self, images: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Samples, Labels]:
        """Samples and their labels as the library takes them; ShapeError or PlanError where they are none."""
        if self.is_classes:
            samples, classes = self.labelled(images, labels)
            self._check_classes(classes)
            return samples, classes
        samples = self.samples(images)
        return samples, float_targets(self.stage, "labels", labels, len(samples), self._label_shape)

    def _check_classes(self, labels: Labels) -> None:
        """PlanError for a class that the network has no output for: on the device it would be found after ``release``."""
        outputs = (t.shape[-1] for t in self.library.tensors.values() if t.role == "output")
        last = next(outputs, np.iinfo(self._label_dtype.name).max + 1) - 1
        found = (int(labels.min()), int(labels.max()))
        if found[0] < 0 or found[1] > last:
            hint = "labels are outputs of the network"
            raise PlanError(self.stage, "labels", f"{found[0]} to {found[1]}", f"0 to {last}", hint)

    def run(self, entry: str, sample: Samples, label: Any) -> None:
        """Run an entry on one sample."""
        self.library.write(self._input, sample.reshape(self._shape))
        self.library.write(self._label, np.asarray(label, self._label_dtype).reshape(self._label_shape))
        self.library.call(entry)

    def choose(
        self, draw: Callable[[], Samples], labels: Labels, plan: UpdatePlan | None
    ) -> tuple[FisherMap | None, UpdatePlan]:
        """Fisher potentials of all samples as they are drawn, then selection; or the plan that was given."""
        given = self.begin(plan)
        if given is not None:
            return None, given
        self.library.call("fisher_begin")
        for sample, label in zip(draw(), labels, strict=True):
            self.run("fisher", sample, label)
        return self.potentials(), self.select()

    def iterate(self, samples: Samples, labels: Labels) -> float:
        """One pass over the samples; returns the mean of their losses, each before its own step."""
        losses = []
        for sample, label in zip(samples, labels, strict=True):
            self.run(self._train, sample, label)
            losses.append(float(self.library.read("loss").reshape(-1)[0]))
        if self._applies:
            self.library.call("apply")
        return float(np.mean(losses))

    def forget(self) -> None:
        """Drop what an unfinished pass has accumulated: the next one would apply it."""
        if self._applies:
            self.drop_gradients()
