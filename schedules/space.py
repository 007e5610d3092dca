"""A kernel's knobs as a MetaSchedule design space: one sample_categorical per knob, and the kernel annotated with what was drawn.

The rule itself runs after the search has decided (in the builder), so that it may be any Python; the trace is the list of decisions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.postproc import PyPostproc

from tvm_tinytrain.schedules.knobs import Space

_KNOB = "tt.knob."


def sample_knobs(schedule: Schedule, space: Space) -> Schedule:
    """Adds to ``schedule`` a random choice for each knob."""
    root = schedule.get_sblock("root")
    for name, (candidates, default) in space.knobs.items():
        share = [1.0 / len(candidates)] * len(candidates)
        value = schedule.sample_categorical(list(candidates), share, decision=candidates.index(default))
        schedule.annotate(root, _KNOB + name, value)
    return schedule


def sampled_knobs(mod: tvm.IRModule) -> dict[str, int]:
    """What was drawn for a candidate."""
    annotations = mod["main"].body.block.annotations
    return {str(k).removeprefix(_KNOB): int(v) for k, v in annotations.items() if str(k).startswith(_KNOB)}


@derived_object
class WithinLimits(PyPostproc):
    """Refuses candidates outside of a space, before they are measured."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, schedule: Schedule) -> bool:
        """Whether the candidate is in the space."""
        return self.space.contains(sampled_knobs(schedule.mod))

    def clone(self) -> Any:
        """The same for another thread."""
        return WithinLimits(self.space)


@derived_object
class ChangeOneKnob(PyMutator):
    """Decides one knob of a trace anew."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.random = random.Random(seed)

    def _initialize_with_tune_context(self, context: Any) -> None:
        pass

    def apply(self, trace: Any, _: Any) -> Any:
        """A trace that differs in one decision, or None where there is nothing to decide."""
        samples = [i for i in trace.insts if i.kind.name == "SampleCategorical" and len(i.attrs[0]) > 1]
        if not samples:
            return None
        chosen = self.random.choice(samples)
        count, now = len(chosen.attrs[0]), int(trace.decisions[chosen])
        other = (now + self.random.randrange(1, count)) % count
        return trace.with_decision(chosen, other, remove_postproc=True)

    def clone(self) -> Any:
        """A mutator for another thread."""
        return ChangeOneKnob(self.seed)


@derived_object
class KnobFeatures(PyFeatureExtractor):
    """A candidate's features for the cost model: its knobs, and the product of each two of them."""

    def extract_from(self, context: Any, candidates: Sequence[Any]) -> list[Any]:
        """One row for each candidate."""
        return [tvm.runtime.tensor(_features(sampled_knobs(c.sch.mod))) for c in candidates]


def _features(knobs: Mapping[str, int]) -> np.ndarray:
    values = [float(knobs[name]) for name in sorted(knobs)]
    pairs = [a * b for i, a in enumerate(values) for b in values[i + 1 :]]
    return np.array([[*values, *pairs]], dtype=np.float32)
