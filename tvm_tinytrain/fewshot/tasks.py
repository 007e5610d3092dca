"""One task, every method: what held-out support samples say of each rate; adapting from the network's weights, classifying."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.adaptation import AdaptableLibrary, AdaptResult, DiffAugment, QuerySource, adapt
from tvm_tinytrain.adaptation.library import Caller
from tvm_tinytrain.config import Prototypical
from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.fewshot.episodes import Episode
from tvm_tinytrain.fewshot.methods import Method

Samples = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
PAPER_RATES = (0.0, 1e-4, 1e-3, 1e-2)
"""What P>M>F chooses from; 0 is no adaptation."""
RATE_BY = ("domain", "task")
"""What a rate is chosen for. P>M>F chooses by domain. One task's few held-out samples say little: on 25 tasks of five domains
(MCUNet, 5-way 5-shot) choosing by task cost "tinytrain" 1.2 points and "exact" 1.9 against choosing by domain."""


class RestartableLibrary(AdaptableLibrary, Protocol):
    """A library that can go back to its initial weights, as `InProcess` does."""

    def init(self) -> None:
        """Write the initial parameters."""


@dataclass(frozen=True)
class AdaptOptions:
    """How every method adapts.

    rates: learning rates; with more than one a rate is chosen for each method: a share of each class's support samples
    (`held_out`, at least one, where the class has two or more) is kept back, the rest adapts for `tuning_iterations` at
    each rate, and the rate of least cross-entropy on what was kept back wins, the smallest of equals. Each held-out
    sample is also seen `held_out_copies` times augmented, which steadies the choice. rate_by: "domain", the mean over all
    tasks of a domain and sampler decides; "task", each task for itself, or its domain where it can spare no sample; both, for
    a table of both. No task's queries choose its rate by task; by domain another task may hold out what is a query here.
    queries_per_iteration: bounds the cost of an iteration over a large support set. loss: without gradients
    through the prototypes an iteration costs one backward pass per pseudo-query instead of two.
    fisher_through_prototypes: whether the Fisher pass measures what flows through them all the same. On 100 tasks of five
    domains (MCUNet, 5-way 5-shot) that cost "tinytrain" 0.8 ± 0.7 points and changed nothing for "exact".
    """

    iterations: int = 40
    rates: tuple[float, ...] = PAPER_RATES
    tuning_iterations: int = 40
    held_out: float = 0.4
    held_out_copies: int = 3
    rate_by: tuple[str, ...] = ("domain",)
    queries_per_iteration: int | None = None
    loss: Prototypical = field(default_factory=lambda: Prototypical(through_prototypes=False))
    fisher_through_prototypes: bool = False
    augment: QuerySource = field(default_factory=DiffAugment)

    def __post_init__(self) -> None:
        if not self.rates or any(not rate >= 0.0 for rate in self.rates):
            raise PlanError("evaluate", "rates", self.rates, "one or more rates ≥ 0", "0 means no adaptation")
        if not self.rate_by or not set(self.rate_by) <= set(RATE_BY):
            raise PlanError("evaluate", "rate_by", self.rate_by, ", ".join(RATE_BY), "choose one or both")
        if not 0.0 < self.held_out < 1.0:
            raise PlanError(
                "evaluate", "held_out", self.held_out, "a share in (0, 1)", "2 of 5 shots are 0.4"
            )
        check_augment("evaluate", self.augment)


def check_augment(stage: str, augment: object) -> None:
    """PlanError for what makes no pseudo-queries."""
    if isinstance(augment, type) or not callable(augment):
        allowed, hint = "a function of samples and a generator", "e.g. DiffAugment()"
        raise PlanError(stage, "augment", repr(augment), allowed, hint)


@dataclass(frozen=True)
class Outcome:
    """What one method reached on one task.

    rate: the learning rate used. losses: of the pseudo-queries. layers: {trained layer: channels} of a
    task-adaptive method. The costs are `Method.cost`'s, for the plan trained. seconds: of this
    adaptation, without the choice of the rate.
    """

    method: str
    accuracy: float
    rate: float
    losses: tuple[float, ...]
    layers: Mapping[str, int]
    memory_bytes: int
    backward_macs: int
    trained_weights: int
    seconds: float

    @property
    def fits_nothing(self) -> bool:
        """No step at a rate above 0: where iterations were asked for, no channel fitted the budgets."""
        return self.rate > 0.0 and not self.losses


@dataclass(frozen=True)
class Trial:
    """What held-out support samples say of one method on one task.

    losses: {rate: cross-entropy}; empty where no class can spare a sample. fits_nothing: no channel fitted the budgets.
    """

    losses: Mapping[str, float]
    fits_nothing: bool = False


def held_out_trials(
    episode: Episode,
    methods: Sequence[Method],
    libraries: Mapping[str, RestartableLibrary],
    options: AdaptOptions,
    seed: int,
) -> dict[str, Trial]:
    """{method that trains: what held-out support samples say of its rates}."""
    support, labels = episode.support_set()
    return {
        m.name: _Task(libraries[m.library.name], m, support, labels, options, seed).held_out_trial()
        for m in methods
        if m.trains
    }


def best_rate(rates: Sequence[float], losses: Iterable[Mapping[str, float]]) -> float | None:
    """The rate of least mean loss, the smallest of equals; None where nothing was measured and there is a choice.

    A rate at which any loss is not finite is the worst.
    """
    measured = [found for found in losses if found]
    if not measured:
        return rates[0] if len(rates) == 1 else None

    def mean(rate: float) -> float:
        values = [found[name_of(rate)] for found in measured]
        return fmean(values) if all(map(isfinite, values)) else inf

    return min(rates, key=lambda r: (mean(r), r))


def name_of(rate: float) -> str:
    """A rate as it stands in files."""
    return f"{rate:g}"


def run_task(
    episode: Episode,
    methods: Sequence[Method],
    libraries: Mapping[str, RestartableLibrary],
    options: AdaptOptions,
    seed: int,
    rates: Mapping[str, Collection[float]],
) -> list[Outcome]:
    """Run every method on one task at each of its rates, from the same draws.

    libraries: {library name: loaded library}. rates: {method that trains: rates}.
    """
    support, labels = episode.support_set()
    queries, query_labels = episode.query_set()
    outcomes = []
    for method in methods:
        for rate in sorted(set(rates[method.name])) if method.trains else (0.0,):
            start = time.perf_counter()
            task = _Task(libraries[method.library.name], method, support, labels, options, seed)
            result = task.adapt(rate)
            accuracy = float(np.mean(result.classify(task.library, queries) == query_labels))
            trained = method if result.losses else Method(method.name, method.library, False)
            plan = result.plan
            outcomes.append(
                Outcome(
                    method.name,
                    accuracy,
                    rate,
                    result.losses,
                    {} if plan is None else {str(i): len(plan[i].outputs) for i in plan},
                    **trained.cost(plan),
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
        self.method.write_options(self.library, self.seed)
        o = self.options
        common: dict[str, Any] = {"loss": o.loss, "queries": o.augment, "seed": self.seed}
        try:
            result = adapt(
                self.library, samples, labels, iterations=iterations, lr=rate,
                queries_per_iteration=o.queries_per_iteration,
                fisher_through_prototypes=o.fisher_through_prototypes, **common,
            )  # fmt: skip
        except BudgetError:  # nothing fits: the network stays as it is
            return adapt(self.library, samples, labels, iterations=0, **common)
        if result.interrupted:  # adapt keeps what it has; a task that was not finished is no result
            raise KeyboardInterrupt
        return result

    def held_out_trial(self) -> Trial:
        """Cross-entropy of the samples kept back, by rate; nan where the training's is."""
        rng = np.random.default_rng([self.seed, 1])
        kept_back = np.zeros(len(self.labels), bool)
        for label in np.unique(self.labels):
            rows = rng.permutation(np.flatnonzero(self.labels == label))
            if len(rows) > 1:
                kept_back[rows[: max(1, int(len(rows) * self.options.held_out))]] = True
        if not kept_back.any():
            return Trial({})
        copies = [
            self.options.augment(self.support[kept_back], rng) for _ in range(self.options.held_out_copies)
        ]
        asked = np.concatenate([self.support[kept_back], *copies])
        truth = np.tile(self.labels[kept_back], 1 + len(copies))
        found, fits_nothing = {}, False
        for rate in self.options.rates:
            used = self.options.tuning_iterations
            result = self._adapt(self.support[~kept_back], self.labels[~kept_back], rate, used)
            fits_nothing |= used > 0 and rate > 0.0 and not result.losses
            scores = result.classifier.logits(Caller(self.library).embed(asked))
            scores -= scores.max(axis=1, keepdims=True)
            right = scores[np.arange(len(truth)), truth]
            loss = float(np.mean(np.log(np.exp(scores).sum(axis=1)) - right))
            found[name_of(rate)] = loss if all(map(isfinite, result.losses)) else nan
        return Trial(found, fits_nothing)
