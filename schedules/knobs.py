"""The free numbers of a rule: its own choice, a record's, or the tuner's.

A rule asks for a *number* (a tile's size) with `Knobs.number`, and for an *option* (which loops are unrolled) with `Knobs.option`. A
number that is sampled is a random variable of the schedule, so that MetaSchedule can change it in the trace; an option decides which
instructions the trace has, so that each combination of options is a design space of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm.s_tir import Schedule


class Knobs:
    """The rule's own choices, except where ``values`` holds a candidate under the knob's name."""

    def __init__(self, values: Mapping[str, int] | None = None) -> None:
        self.values = dict(values or {})

    def number(self, schedule: Schedule, name: str, candidates: Sequence[int], default: int) -> Any:
        """One of ``candidates``: an int, or an ExprRV while sampling."""
        return self.option(name, candidates, default)

    def option(self, name: str, candidates: Sequence[int], default: int) -> int:
        """One of ``candidates``."""
        value = self.values.get(name, default)
        return value if value in candidates else default


class SampledKnobs(Knobs):
    """Numbers become random variables, with the rule's choice as the first decision; ``values`` holds options only.

    ``numbers`` and ``options`` say what the rule asked for, in order: name → candidates.
    """

    def __init__(self, values: Mapping[str, int] | None = None) -> None:
        super().__init__(values)
        self.numbers: dict[str, tuple[int, ...]] = {}
        self.options: dict[str, tuple[int, ...]] = {}

    def number(self, schedule: Schedule, name: str, candidates: Sequence[int], default: int) -> Any:
        """A random variable over ``candidates``, all equally likely."""
        self.numbers[name] = tuple(candidates)
        if len(candidates) == 1:
            return candidates[0]
        share = [1.0 / len(candidates)] * len(candidates)
        return schedule.sample_categorical(list(candidates), share, decision=list(candidates).index(default))

    def option(self, name: str, candidates: Sequence[int], default: int) -> int:
        """The given value, or the rule's."""
        self.options[name] = tuple(candidates)
        return super().option(name, candidates, default)


DEFAULTS = Knobs()
"""Every rule's own choices."""


def up_to(limit: int, candidates: Sequence[int]) -> tuple[int, ...]:
    """The candidates that are not above ``limit``, which is one of them if it is below the largest."""
    return tuple(
        sorted({c for c in candidates if c < limit} | ({limit} if limit <= max(candidates) else set()))
    )
