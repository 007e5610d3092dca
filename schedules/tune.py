"""The search for the best knobs of one kernel: MetaSchedule with its cost model, and a measurement that is passed in.

A candidate that is wrong, faults, takes too long or does not fit is a failed trial; it never ends the search. What no candidate caused
(a board that is not there) does end it, and is no outcome. Everything is decided by the seed and the outcomes, and outcomes are in a
journal: a search that was killed decides the same again, without measuring again.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.builder import BuilderResult, PyBuilder
from tvm.s_tir.meta_schedule.runner import PyRunner, PyRunnerFuture, RunnerResult

from tvm_tinytrain._version import __version__
from tvm_tinytrain.errors import KernelError
from tvm_tinytrain.interrupts import Interrupts, interrupts
from tvm_tinytrain.passes.lower_kernels import lower_kernel
from tvm_tinytrain.schedules.blocks import describe, kind_of
from tvm_tinytrain.schedules.journal import Journal, Outcome
from tvm_tinytrain.schedules.knobs import AskedKnobs, Knobs
from tvm_tinytrain.schedules.records import KnobRule, Record, core_of, tunable_rule, workload_key
from tvm_tinytrain.schedules.space import (
    ChangeOneKnob,
    KnobFeatures,
    WithinLimits,
    sample_knobs,
    sampled_knobs,
)

BATCH = 16
POPULATION = 64
MOST_STATEMENTS = 1500
"""Longer candidates, unrolled far beyond the registers, take GCC a minute each, and none was ever the best."""

Measure = Callable[[Mapping[str, tirx.PrimFunc]], Mapping[str, Outcome]]
"""Lowered candidates by name → outcomes of one at least; it is asked again for the others.

It checks results. It raises a `TinyTrainError` for what no candidate caused, and for nothing that one does.
"""


class UntunableError(KernelError):
    """The rule's own choice fails where candidates are measured, so that there is nothing to compare with."""


@dataclass(frozen=True)
class Search:
    """How to search. ``trials``: most measurements; ``measured`` is called with the number of candidates decided so far."""

    trials: int
    seed: int
    unit: str
    measured: Callable[[int], None] = lambda count: None


def tune_kernel(
    func: tirx.PrimFunc, target: tvm.target.Target, measure: Measure, folder: Path, search: Search
) -> Record | None:
    """The best knobs found; None for a kernel without knobs.

    ``folder`` keeps the journal: what is in it is not measured again. Ctrl-C ends the search and is no candidate's failure.

    Raises
    ------
    UntunableError
        The rule's own choice fails. The journal keeps nothing of it: a second call tries again.
    ArchiveError
        The journal is another search's, or cannot be written.
    TinyTrainError
        What ``measure`` raises.
    """
    found = tunable_rule(func, target)
    if found is None:
        return None
    name, rule = found
    kernel = _Kernel(func, rule, target)
    head = {
        "workload": workload_key(func),
        "core": core_of(target),
        "rule": name,
        "space": kernel.space.to_json(),
        "seed": search.seed,
        "unit": search.unit,
        "version": __version__,
    }
    journal = Journal(folder / f"{workload_key(func)}.jsonl", head)
    with interrupts() as stopped:
        runner = _Runner(kernel, measure, journal, search, stopped)
        try:
            _decide(kernel, runner, search)
        except Exception:
            stopped.check()
            raise
        stopped.check()
    journal.finish(search.trials)
    chosen, best = journal.get(kernel.own_choice), journal.best()
    assert chosen is not None and chosen.cost is not None and best is not None
    knobs, cost = best
    kind = str(kind_of(func))
    return Record(workload_key(func), kind, name, knobs, cost, chosen.cost, search.unit, core_of(target))


def _decide(kernel: _Kernel, runner: Any, search: Search) -> None:
    """Measures the whole space where it is small, else what MetaSchedule asks for; nothing where that is done."""
    if runner.journal.finished >= search.trials:
        search.measured(search.trials)
    elif kernel.space.size(search.trials + 1) <= search.trials:
        own = kernel.own_choice
        everything = [own, *(knobs for knobs in kernel.space.all() if knobs != own)]
        for start in range(0, len(everything), BATCH):
            runner.measure_all(everything[start : start + BATCH])
    elif search.trials > 1:
        _run(kernel, runner, search.trials, search.seed)
    else:
        runner.measure_all([kernel.own_choice])


class _Kernel:
    """A kernel with its rule: the knobs that there are, and the lowered candidate for some."""

    def __init__(self, func: tirx.PrimFunc, rule: KnobRule, target: tvm.target.Target) -> None:
        self.func, self.rule, self.target = func, rule, target
        probe = AskedKnobs()
        rule(func, target, probe)
        self.space = probe.space
        self.own_choice = probe.space.own_choice()

    def lowered(self, knobs: Mapping[str, int]) -> tirx.PrimFunc:
        """Raises what TVM raises for knobs that do not work."""
        schedule = self.rule(self.func, self.target, Knobs(knobs))
        assert schedule is not None
        attrs = {k: v for k, v in self.func.attrs.items() if k != "global_symbol"}
        low = lower_kernel(schedule.mod["main"].with_attrs(attrs), self.target)
        stores: list[Any] = []
        tvm_ffi.structural_walk(low.body, [(tirx.BufferStore, stores.append)])
        if len(stores) > MOST_STATEMENTS:
            raise KernelError(
                "tune", "candidate", f"{len(stores)} statements", f"up to {MOST_STATEMENTS}", "unroll less"
            )
        return low

    def sample(self, schedule: Schedule) -> Schedule:
        """The design space for MetaSchedule."""
        return sample_knobs(schedule, self.space)


@contextmanager
def _without_intrinsics() -> Iterator[None]:
    """Lets MetaSchedule's import of all tensor intrinsics find an empty module: it took 19 to 60 s, and no rule here uses one."""
    name = "tvm.s_tir.tensor_intrin"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = ModuleType(name)
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


def _run(kernel: _Kernel, runner: Any, trials: int, seed: int) -> None:
    """MetaSchedule's evolutionary search; its outcomes end up in the runner's journal."""
    state = np.random.get_state()
    np.random.seed(
        seed % 2**32
    )  # the cost model's guesses before it has seen anything come from numpy's generator
    try:
        with _without_intrinsics():
            context = ms.TuneContext(
                mod=tvm.IRModule({"main": kernel.func.with_attr("global_symbol", "main")}),
                target=kernel.target,
                space_generator=ms.space_generator.ScheduleFn(
                    kernel.sample,
                    sch_rules=[],
                    postprocs=[WithinLimits(kernel.space)],
                    mutator_probs={ChangeOneKnob(seed): 1.0},
                ),
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=POPULATION, init_min_unmeasured=BATCH
                ),
                rand_state=seed % 2**62 + 1,  # must be positive and fit 64 bits
                num_threads=1,
                logger=logging.getLogger(__name__),
            )
            ms.tune.tune_tasks(
                tasks=[context],
                task_weights=[1.0],
                work_dir="",  # read for a database on disk only
                max_trials_global=trials,
                num_trials_per_iter=min(BATCH, trials),
                builder=_Builder(),
                runner=runner,
                database="memory",
                cost_model=ms.cost_model.XGBModel(
                    extractor=KnobFeatures(), num_warmup_samples=BATCH, num_tuning_cores=1
                ),
                measure_callbacks=[
                    ms.measure_callback.AddToDatabase(),
                    ms.measure_callback.UpdateCostModel(),
                ],
            )
    except Exception:
        if runner.error is not None:  # what comes through MetaSchedule's C++ has lost its class
            raise runner.error from None
        raise
    finally:
        np.random.set_state(state)


@derived_object
class _Builder(PyBuilder):
    """Hands the knobs of a candidate on, as JSON in the place of an artifact's path: nothing is on disk to be left there."""

    def build(self, build_inputs: Any) -> Any:
        """One result for each candidate."""
        return [BuilderResult(json.dumps(sampled_knobs(item.mod)), None) for item in build_inputs]


@derived_object
class _Measured(PyRunnerFuture):
    """A result that is there already."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome

    def done(self) -> bool:
        """Always."""
        return True

    def result(self) -> Any:
        """The cost in the place of seconds: MetaSchedule only compares it."""
        if self.outcome.cost is None:
            return RunnerResult(None, self.outcome.failure or "failed")
        return RunnerResult([self.outcome.cost], None)


@derived_object
class _Runner(PyRunner):
    """Measures a batch at once, except what the journal knows."""

    def __init__(
        self, kernel: _Kernel, measure: Measure, journal: Journal, search: Search, stopped: Interrupts
    ) -> None:
        super().__init__()
        self.kernel, self.measure, self.journal, self.search = kernel, measure, journal, search
        self.stopped = stopped
        self.decided = 0
        self.error: Exception | None = None

    def run(self, runner_inputs: Any) -> Any:
        """One result for each candidate, in order."""
        batch = [json.loads(str(item.artifact_path)) for item in runner_inputs]
        try:
            self.measure_all([self.kernel.own_choice, *batch] if self.decided == 0 else batch)
        except Exception as error:
            self.error = error
            raise
        outcomes = [self.journal.get(knobs) for knobs in batch]
        return [_Measured(outcome or Outcome(None, "not measured")) for outcome in outcomes]

    def measure_all(self, batch: Sequence[Mapping[str, int]]) -> None:
        """Adds to the journal what it does not know of a batch."""
        self.stopped.check()
        names: dict[str, Mapping[str, int]] = {}
        kernels: dict[str, tirx.PrimFunc] = {}
        for index, knobs in enumerate(batch):
            if self.journal.get(knobs) is not None or knobs in names.values():
                continue
            try:
                kernels[f"c{index}"] = self.kernel.lowered(knobs)
                names[f"c{index}"] = knobs
            except Exception as error:  # whatever TVM raises for a candidate makes it a failed trial
                self._keep(
                    {f"c{index}": Outcome(None, f"does not lower: {error}"[:500])}, {f"c{index}": knobs}
                )
        while kernels:
            outcomes = self.measure(kernels)
            if not outcomes:
                hint = "give one outcome at least, or raise"
                raise KernelError("tune", "measurement", "no outcome", "an outcome of a candidate", hint)
            self._keep(outcomes, names)
            kernels = {name: func for name, func in kernels.items() if name not in outcomes}
        self.decided += len(batch)
        self.search.measured(self.decided)

    def _keep(self, outcomes: Mapping[str, Outcome], names: Mapping[str, Mapping[str, int]]) -> None:
        """Nothing, where the rule's own choice is among the failures: then what failed may not be the candidates. Nor after Ctrl-C."""
        self.stopped.check()
        for name, outcome in outcomes.items():
            if outcome.cost is None and names[name] == self.kernel.own_choice:
                allowed = "a right result of the rule's own choice"
                hint = "this kernel is left as it is; run it again if something else was in the way"
                raise UntunableError("tune", describe(self.kernel.func), outcome.failure, allowed, hint)
        for name, outcome in outcomes.items():
            self.journal.add(names[name], outcome)
