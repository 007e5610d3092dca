"""One task, every method: choose a rate on held-out support samples, adapt from the network's weights, classify."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.adaptation import AdaptableLibrary, AdaptResult, DiffAugment, adapt
from tvm_tinytrain.adaptation.library import Caller
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.fewshot.episodes import Episode
from tvm_tinytrain.fewshot.methods import Method

Samples = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
PAPER_RATES = (0.0, 1e-4, 1e-3, 1e-2)
"""What P>M>F chooses from; 0 is no adaptation."""


class RestartableLibrary(AdaptableLibrary, Protocol):
    """A library that can go back to its initial weights, as `InProcess` does."""

    def init(self) -> None:
        """Write the initial parameters."""


@dataclass(frozen=True)
class AdaptOptions:
    """How every method adapts.

    rates: learning rates; with more than one the rate is chosen for each task and method: a share of each class's
    support samples (`held_out`, at least one, where the class has two or more) is kept back, the rest adapts for
    `tuning_iterations` at each rate, and the rate of least cross-entropy on what was kept back wins, the smallest
    of equals. Each held-out sample is also seen `held_out_copies` times augmented, which steadies the choice.
    queries_per_iteration: bounds the cost of an iteration over a large support set. loss: without gradients
    through the prototypes an iteration costs one backward pass per pseudo-query instead of two.
    """

    iterations: int = 40
    rates: tuple[float, ...] = PAPER_RATES
    tuning_iterations: int = 40
    held_out: float = 0.4
    held_out_copies: int = 3
    queries_per_iteration: int | None = None
    loss: Prototypical = field(default_factory=lambda: Prototypical(through_prototypes=False))
    augment: DiffAugment = field(default_factory=DiffAugment)

    def __post_init__(self) -> None:
        if not self.rates or any(not rate >= 0.0 for rate in self.rates):
            raise PlanError("evaluate", "rates", self.rates, "one or more rates ≥ 0", "0 means no adaptation")
        if not 0.0 < self.held_out < 1.0:
            raise PlanError(
                "evaluate", "held_out", self.held_out, "a share in (0, 1)", "2 of 5 shots are 0.4"
            )


@dataclass(frozen=True)
class Outcome:
    """What one method reached on one task.

    rate: the learning rate used. tuning: held-out cross-entropy by rate. losses: of the pseudo-queries. layers:
    {trained layer: channels} of a task-adaptive method. The costs are `Method.cost`'s, for the plan trained.
    """

    method: str
    accuracy: float
    rate: float
    tuning: Mapping[str, float]
    losses: tuple[float, ...]
    layers: Mapping[str, int]
    memory_bytes: int
    backward_macs: int
    trained_weights: int
    seconds: float


def run_task(
    episode: Episode,
    methods: Sequence[Method],
    libraries: Mapping[str, RestartableLibrary],
    options: AdaptOptions,
    seed: int,
) -> list[Outcome]:
    """Run every method on one task, from the same draws; libraries: {library name: loaded library}."""
    support, labels = episode.support_set()
    queries, query_labels = episode.query_set()
    outcomes = []
    for method in methods:
        start = time.perf_counter()
        task = _Task(libraries[method.library.name], method, support, labels, options, seed)
        tuning = task.held_out_losses() if method.trains and len(options.rates) > 1 else {}
        rate = min(tuning, key=lambda r: (tuning[r], r)) if tuning else options.rates[0]
        result = task.adapt(rate if method.trains else 0.0)
        accuracy = float(np.mean(result.classify(task.library, queries) == query_labels))
        cost = (
            method.cost(result.plan)
            if result.losses
            else Method(method.name, method.library, False).cost(None)
        )
        plan = result.plan
        outcomes.append(
            Outcome(
                method.name,
                accuracy,
                rate if method.trains else 0.0,
                {f"{r:g}": v for r, v in tuning.items()},
                result.losses,
                {} if plan is None else {str(i): len(plan[i].outputs) for i in plan},
                **cost,
                seconds=time.perf_counter() - start,
            )
        )
    return outcomes


@dataclass(frozen=True)
class _Task:
    library: RestartableLibrary
    method: Method
    support: Samples
    labels: Labels
    options: AdaptOptions
    seed: int

    def adapt(self, rate: float) -> AdaptResult:
        return self._adapt(self.support, self.labels, rate, self.options.iterations)

    def _adapt(self, samples: Samples, labels: Labels, rate: float, iterations: int) -> AdaptResult:
        self.library.init()
        code = self.method.criterion_code
        if code is not None:
            words = self.library.read("options")
            words[code[0]] = code[1]
            self.library.write("options", words)
        o = self.options
        common: dict[str, Any] = {"loss": o.loss, "queries": o.augment, "seed": self.seed}
        try:
            return adapt(
                self.library, samples, labels, iterations=iterations, lr=rate,
                queries_per_iteration=o.queries_per_iteration, **common,
            )  # fmt: skip
        except BudgetError:  # nothing fits: the network stays as it is
            return adapt(self.library, samples, labels, iterations=0, **common)

    def held_out_losses(self) -> dict[float, float]:
        """Cross-entropy of the samples kept back, by rate; empty where no class can spare one."""
        rng = np.random.default_rng([self.seed, 1])
        kept_back = np.zeros(len(self.labels), bool)
        for label in np.unique(self.labels):
            rows = rng.permutation(np.flatnonzero(self.labels == label))
            if len(rows) > 1:
                kept_back[rows[: max(1, int(len(rows) * self.options.held_out))]] = True
        if not kept_back.any():
            return {}
        copies = [
            self.options.augment(self.support[kept_back], rng) for _ in range(self.options.held_out_copies)
        ]
        asked = np.concatenate([self.support[kept_back], *copies])
        truth = np.tile(self.labels[kept_back], 1 + len(copies))
        found = {}
        for rate in self.options.rates:
            used = self.options.tuning_iterations
            result = self._adapt(self.support[~kept_back], self.labels[~kept_back], rate, used)
            scores = result.classifier.logits(Caller(self.library).embed(asked))
            scores -= scores.max(axis=1, keepdims=True)
            right = scores[np.arange(len(truth)), truth]
            found[rate] = float(np.mean(np.log(np.exp(scores).sum(axis=1)) - right))
        return found
