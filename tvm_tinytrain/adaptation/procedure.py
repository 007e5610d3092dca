"""TinyTrain's online stage: pseudo-queries from the support set, Fisher → select → install, then training.

Kwon et al., ICML 2024, §2.2 and App. C, after P>M>F (Hu et al., CVPR 2022): in each iteration the support set is
augmented into pseudo-queries, prototypes are the means of the un-augmented support embeddings, the loss is the
cross-entropy of the pseudo-queries. A device holds one sample at a time, so an iteration is two passes: all
embeddings, then one backward pass for each sample from the exact gradient of the loss with respect to its
embedding, then one step of the optimizer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.adaptation.augment import DiffAugment, QuerySource, Samples
from tvm_tinytrain.adaptation.library import AdaptableLibrary, Caller
from tvm_tinytrain.adaptation.protonet import PrototypeClassifier, class_prototypes, loss_and_gradients
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import FisherMap
from tvm_tinytrain.values import as_whole


@dataclass(frozen=True)
class Progress:
    """What an iteration reached: loss and accuracy of its pseudo-queries, before its step."""

    iteration: int
    iterations: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class AdaptResult:
    """What an adaptation did.

    losses, accuracies: of the pseudo-queries by iteration, before each step; the last loss is nan where the steps made
    weights that are no finite numbers. classifier: prototypes of the adapted network. fisher, plan: of a
    task-adaptive library, else None. interrupted: stopped before the last iteration; the steps that were taken stay.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    classifier: PrototypeClassifier
    fisher: FisherMap | None = field(default=None, repr=False)
    plan: UpdatePlan | None = None
    interrupted: bool = False
    seconds: float = field(default=0.0, compare=False)

    def classify(self, library: AdaptableLibrary, images: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Labels int64[n] of images [n, …] by the adapted library."""
        caller = Caller(library)
        return self.classifier.classify(caller.embed(caller.samples(images)))


def adapt(
    library: AdaptableLibrary,
    support_images: npt.ArrayLike,
    support_labels: npt.ArrayLike,
    *,
    iterations: int = 40,
    lr: float = 1e-3,
    loss: Prototypical | None = None,
    queries: QuerySource | None = None,
    queries_per_iteration: int | None = None,
    plan: UpdatePlan | None = None,
    fisher_through_prototypes: bool = False,
    seed: int = 0,
    progress: Callable[[Progress], object] | None = None,
) -> AdaptResult:
    """Adapt a library to a labelled support set.

    Parameters
    ----------
    library
        Built with ``loss=Prototypical()`` and ``accumulate=True``. Adaptation goes on from the weights it has; a
        task-adaptive one is released first, so that it starts from the network's own.
    support_images
        float32[n, *shape of one sample]; in the range that the network was trained on. Bytes, uint8, for a library that was
        built with ``MemoryOptions(input_dtype="uint8")``.
    support_labels
        integers[n], any values; each value is a class.
    iterations, lr
        Steps of the optimizer and its rate; the paper takes 40 steps of Adam. Afterwards the library has its own rate again.
        Where either is 0 nothing is trained or selected, and the result is plain ProtoNet.
    loss
        Distance and scale; default ``Prototypical()``. Only the host needs it: the library takes gradients.
    queries
        Makes pseudo-queries of the support samples, in their dtype; default ``DiffAugment()``.
    queries_per_iteration
        Use so many pseudo-queries per iteration, drawn without replacement; default one for each support sample. The
        Fisher pass takes one for each support sample in any case.
    plan
        Install this plan into a task-adaptive library instead of letting it select.
    fisher_through_prototypes
        The Fisher pass also measures what flows through the prototypes into the support samples, one more backward
        pass for each of them, whatever ``loss`` says of the iterations.
    seed
        Of augmentation and of the draws.
    progress
        Called after each iteration; returning False ends the adaptation there. So does Ctrl-C, which also drops
        the gradients of the unfinished iteration.

    Returns
    -------
    AdaptResult
        Losses, the plan that was trained, and the classifier of the adapted network.

    Raises
    ------
    PlanError, ShapeError, DTypeError, BudgetError
        The library is not adaptable, or an option is none; samples or labels do not fit; nothing fits the library's budget.
    """
    caller = Caller(library)
    start = time.perf_counter()
    caller.check_options(iterations, lr, queries, seed, progress)
    caller.check_plan(plan)
    if queries_per_iteration is not None:
        hint = "None takes one for each support sample"
        as_whole("adapt", "queries_per_iteration", queries_per_iteration, 1, hint)
    if loss is not None and not isinstance(loss, Prototypical):
        hint = "a library of another loss is trained by learn"
        raise PlanError("adapt", "loss", repr(loss), "Prototypical(...)", hint)
    if not isinstance(fisher_through_prototypes, (bool, np.bool_)):
        hint = "whatever `loss` says of the iterations"
        raise PlanError(
            "adapt", "fisher_through_prototypes", repr(fisher_through_prototypes), "True, False", hint
        )
    task = _Task.make(caller, support_images, support_labels, loss or Prototypical())
    rng = np.random.default_rng(seed)
    draw = _Draw(caller, task, queries or DiffAugment(), queries_per_iteration, rng)
    if iterations == 0 or lr == 0.0:
        return AdaptResult((), (), task.classifier(caller), seconds=time.perf_counter() - start)
    fisher, used = (
        _choose(caller, task, draw, plan, fisher_through_prototypes) if caller.is_adaptive else (None, None)
    )
    found: list[tuple[float, float]] = []  # in one step: Ctrl-C may come between any two
    interrupted = False
    with caller.learning_rate(lr):
        try:
            for iteration in range(iterations):
                value, accuracy = _iterate(caller, task, draw())
                found.append((value, accuracy))
                seen = Progress(iteration + 1, iterations, value, accuracy)
                if progress is not None and progress(seen) is False:
                    interrupted = iteration + 1 < iterations
                    break
        except KeyboardInterrupt:
            caller.drop_gradients()
            interrupted = True
    if found and not caller.is_finite():
        found[-1] = (math.nan, found[-1][1])
    classifier = task.classifier(caller)
    took = time.perf_counter() - start
    losses, accuracies = tuple(v for v, _ in found), tuple(a for _, a in found)
    return AdaptResult(losses, accuracies, classifier, fisher, used, interrupted, took)


@dataclass(frozen=True)
class _Task:
    """A support set with classes numbered from 0."""

    samples: Samples
    classes: npt.NDArray[np.int64]
    names: npt.NDArray[np.int64]
    loss: Prototypical

    @staticmethod
    def make(caller: Caller, images: npt.ArrayLike, labels: npt.ArrayLike, loss: Prototypical) -> _Task:
        samples, given = caller.labelled(images, labels)
        names, classes = np.unique(given, return_inverse=True)
        return _Task(samples, classes.astype(np.int64), names.astype(np.int64), loss)

    def classifier(self, caller: Caller) -> PrototypeClassifier:
        prototypes = class_prototypes(caller.embed(self.samples), self.classes, len(self.names))
        return PrototypeClassifier(prototypes, self.names, self.loss)


@dataclass(frozen=True)
class _Draw:
    """Draws the pseudo-queries of one iteration: samples and their classes."""

    caller: Caller
    task: _Task
    source: QuerySource
    count: int | None
    rng: np.random.Generator

    def __call__(self, *, whole: bool = False) -> tuple[Samples, npt.NDArray[np.int64]]:
        samples, classes = self.task.samples, self.task.classes
        if self.count is not None and self.count < len(samples) and not whole:
            chosen = np.sort(self.rng.choice(len(samples), self.count, replace=False))
            samples, classes = samples[chosen], classes[chosen]
        return self.caller.drawn(self.source, samples, self.rng), classes


def _choose(
    caller: Caller, task: _Task, draw: _Draw, plan: UpdatePlan | None, through_prototypes: bool
) -> tuple[FisherMap | None, UpdatePlan]:
    """Fisher over one pseudo-query for each support sample, then selection; or the plan that was given.

    All samples, whatever an iteration takes: with 12 of 25, few samples of large loss decided, and "exact" lost a
    point of accuracy (5-way 5-shot, MCUNet, 20 tasks on five domains).
    """
    given = caller.begin(plan)
    if given is not None:
        return None, given
    queries, classes = draw(whole=True)
    support = caller.embed(task.samples)
    loss = replace(task.loss, through_prototypes=through_prototypes)
    gradients = loss_and_gradients(support, task.classes, caller.embed(queries), classes, loss)
    samples, seeds = queries, gradients.queries
    if gradients.support is not None:
        samples, seeds = np.concatenate([queries, task.samples]), np.concatenate([seeds, gradients.support])
    fisher = caller.fisher(samples, seeds * len(queries))
    return fisher, caller.select()


def _iterate(
    caller: Caller, task: _Task, drawn: tuple[Samples, npt.NDArray[np.int64]]
) -> tuple[float, float]:
    queries, classes = drawn
    support = caller.embed(task.samples)
    found = loss_and_gradients(support, task.classes, caller.embed(queries), classes, task.loss)
    caller.backward(queries, found.queries)
    if found.support is not None:
        caller.backward(task.samples, found.support)
    caller.library.call("apply")
    return found.loss, found.accuracy
