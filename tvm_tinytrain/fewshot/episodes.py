"""Tasks for few-shot learning: N-way K-shot, and Meta-Dataset's various-way-various-shot sampler.

Triantafillou et al., ICLR 2020 ("Meta-Dataset"), App. A, with the constants that TinyTrain's pipeline takes over
from P>M>F: 5 to 50 ways, at most 500 support samples and 100 counted per class, 10 queries per class, class
imbalance by weights exp(U[ln 0.5, ln 2]).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import exp, log

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.errors import PlanError, check_least
from tvm_tinytrain.fewshot.datasets import Dataset

Indices = tuple[npt.NDArray[np.int64], ...]


@dataclass(frozen=True)
class FixedWays:
    """N-way K-shot with so many queries per class (fewer where a class has fewer samples, at least one)."""

    ways: int = 5
    shots: int = 5
    queries: int = 15

    def __post_init__(self) -> None:
        _check_least({"ways": (self.ways, 2), "shots": (self.shots, 1), "queries": (self.queries, 1)})

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"{self.ways}-way {self.shots}-shot"

    def counts(
        self, sizes: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], list[int], int]:
        """Classes, support samples of each, queries of each."""
        fitting = np.flatnonzero(np.array(sizes) > self.shots)
        if len(fitting) < self.ways:
            found = f"{len(fitting)} classes of more than {self.shots} samples and one group"
            raise PlanError(
                "episodes", self.name, found, f"{self.ways} or more", "ask for fewer ways or shots"
            )
        chosen = rng.choice(fitting, self.ways, replace=False)
        left = min(sizes[c] for c in chosen) - self.shots
        return chosen, [self.shots] * self.ways, min(self.queries, left)


@dataclass(frozen=True)
class VariousWays:
    """Meta-Dataset's sampler; see the module. max_support bounds the samples that an adaptation costs, and so the ways."""

    min_ways: int = 5
    max_ways: int = 50
    max_queries: int = 10
    max_support: int = 500
    max_per_class: int = 100

    def __post_init__(self) -> None:
        low = self.min_ways
        _check_least(
            {"min_ways": (low, 2), "max_ways": (self.max_ways, low), "max_support": (self.max_support, low)}
        )
        _check_least({"max_queries": (self.max_queries, 1), "max_per_class": (self.max_per_class, 1)})

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"various-way (≤{min(self.max_ways, self.max_support)} ways, ≤{self.max_support} samples)"

    def counts(
        self, sizes: tuple[int, ...], rng: np.random.Generator
    ) -> tuple[npt.NDArray[np.int64], list[int], int]:
        """Classes, support samples of each, queries of each."""
        fitting = np.flatnonzero(np.array(sizes) >= 2)
        if len(fitting) < self.min_ways:
            found = f"{len(fitting)} classes of two or more samples and groups"
            raise PlanError(
                "episodes", self.name, found, f"{self.min_ways} or more", "give more classes, or fixed ways"
            )
        ways = int(rng.integers(self.min_ways, min(self.max_ways, self.max_support, len(fitting)) + 1))
        chosen = rng.choice(fitting, ways, replace=False)
        available = np.array([sizes[c] for c in chosen])
        queries = min(self.max_queries, int(available.min()) // 2)
        rest = available - queries
        beta = 1.0 - rng.random()
        total = min(self.max_support, sum(int(np.ceil(beta * min(self.max_per_class, n))) for n in rest))
        weight = np.array([exp(v) for v in rng.uniform(log(0.5), log(2.0), ways)]) * available
        shots = np.floor(weight / weight.sum() * (total - ways)).astype(np.int64) + 1
        return chosen, [int(n) for n in np.minimum(shots, rest)], queries


Sampler = FixedWays | VariousWays


@dataclass(frozen=True)
class Episode:
    """One task: for each way its class in the data set and the indices of its support and query samples."""

    dataset: Dataset
    classes: npt.NDArray[np.int64]
    support: Indices
    queries: Indices

    @property
    def ways(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def support_set(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Images float32[n, …] and labels 0 … ways-1."""
        return self._load(self.support)

    def query_set(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Images float32[n, …] and labels 0 … ways-1."""
        return self._load(self.queries)

    def _load(self, rows: Indices) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        images = [self.dataset.load(int(c), r) for c, r in zip(self.classes, rows, strict=True)]
        labels = np.repeat(np.arange(self.ways), [len(r) for r in rows])
        return np.concatenate(images), labels.astype(np.int64)


def sample_episode(dataset: Dataset, sampler: Sampler, seed: int, index: int) -> Episode:
    """Draw task number `index` of a seed. It depends on the data set's class sizes and groups, and nothing else.

    Where samples come in groups, support and query never share one: whole groups go to either side. A class may
    then give fewer support samples than asked for, and one of a single group is left out. Raises PlanError where the data
    set is too small, or the seed negative.
    """
    _check_least({"seed": (seed, 0)})
    rng = np.random.default_rng([seed, index])
    classes, shots, queries = sampler.counts(dataset.divisible, rng)
    support, query = [], []
    for label, count in zip(classes, shots, strict=True):
        s, q = _split(dataset.groups[label], count, queries, rng)
        support.append(s)
        query.append(q)
    return Episode(dataset, classes, tuple(support), tuple(query))


def check_tasks(stage: str, dataset: Dataset, sampler: Sampler, seed: int) -> None:
    """PlanError, with the data set's name, where no task can be drawn: before anything is spent on one."""
    try:
        sample_episode(dataset, sampler, seed, 0)
    except PlanError as error:
        thing = f"{dataset.name}, {error.thing}"
        raise PlanError(stage, thing, error.found, error.allowed, error.hint) from error


def episodes(dataset: Dataset, sampler: Sampler, count: int, seed: int = 0) -> Iterator[Episode]:
    """Draw tasks 0 … count-1 of a seed."""
    return (sample_episode(dataset, sampler, seed, index) for index in range(count))


def _check_least(least: Mapping[str, tuple[int, int]]) -> None:
    check_least("episodes", least, "no task can be drawn otherwise")


def _split(
    groups: npt.NDArray[np.int64], shots: int, queries: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of support and query samples of one class.

    Groups in random order are dealt out in proportion to what each side wants, so that support keeps variety.
    """
    order = rng.permutation(len(groups))
    names = rng.permutation(np.unique(groups))
    if len(names) == len(groups):
        return order[:shots], order[shots : shots + queries]
    wanted = max(1, min(len(names) - 1, round(len(names) * shots / (shots + queries))))
    in_support = np.isin(groups[order], names[:wanted])
    return order[in_support][:shots], order[~in_support][:queries]
