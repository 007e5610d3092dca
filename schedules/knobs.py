"""The free numbers of a rule: its own choice, a record's, or the tuner's.

A rule asks for each of them by name, with the candidates and its own choice. What it may choose from depends on the kernel only,
never on another knob: so all knobs of a kernel are one design space, less the combinations that a rule rules out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


class Knobs:
    """The rule's own choices, except where ``values`` holds a candidate under the knob's name."""

    def __init__(self, values: Mapping[str, int] | None = None) -> None:
        self.values = dict(values or {})

    def choose(self, name: str, candidates: Sequence[int], default: int) -> int:
        """One of ``candidates``."""
        value = self.values.get(name, default)
        return value if value in candidates else default

    def product_up_to(self, names: Sequence[str], most: int) -> None:
        """Says that a search need not look where the product of some knobs is above ``most``."""


class RecordedKnobs(Knobs):
    """A record's ``values``; after the rule was asked, `misfits` says which of them it did not take."""

    def __init__(self, values: Mapping[str, int]) -> None:
        super().__init__(values)
        self._offered: dict[str, tuple[int, ...]] = {}

    def choose(self, name: str, candidates: Sequence[int], default: int) -> int:
        """The record's value, if the rule offers it."""
        self._offered[name] = tuple(sorted({*candidates, default}))
        return super().choose(name, candidates, default)

    def misfits(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Knob → (the record's value, what the rule offers: nothing where it has no such knob)."""
        return {
            name: (value, self._offered.get(name, ()))
            for name, value in self.values.items()
            if value not in self._offered.get(name, ())
        }


@dataclass
class Space:
    """The knobs that a rule asked for, in order: name → (candidates, own choice); ``limits``: (names, most of their product)."""

    knobs: dict[str, tuple[tuple[int, ...], int]] = field(default_factory=dict)
    limits: list[tuple[tuple[str, ...], int]] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """Plain values: knobs with what they are chosen from and the own choice, and the limits."""
        knobs = {name: [list(candidates), default] for name, (candidates, default) in self.knobs.items()}
        return {"knobs": knobs, "limits": [[list(names), most] for names, most in self.limits]}

    def own_choice(self) -> dict[str, int]:
        """What the rule takes without a record; always in the space."""
        return {name: default for name, (_, default) in self.knobs.items()}

    def contains(self, values: Mapping[str, int]) -> bool:
        """Whether a search may look at ``values``."""
        within = all(
            math.prod(values[n] for n in names if n in values) <= most for names, most in self.limits
        )
        return within or dict(values) == self.own_choice()

    def all(self) -> Iterator[dict[str, int]]:
        """Every candidate."""
        names, choices = list(self.knobs), [candidates for candidates, _ in self.knobs.values()]
        for values in itertools.product(*choices):
            candidate = dict(zip(names, values, strict=True))
            if self.contains(candidate):
                yield candidate

    def size(self, most: int) -> int:
        """Number of candidates, counted up to ``most``."""
        return sum(1 for _ in itertools.islice(self.all(), most))


class AskedKnobs(Knobs):
    """The rule's own choices; ``space`` says what it asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space()

    def choose(self, name: str, candidates: Sequence[int], default: int) -> int:
        """The rule's own choice."""
        self.space.knobs[name] = (tuple(sorted({*candidates, default})), default)
        return default

    def product_up_to(self, names: Sequence[str], most: int) -> None:
        """A bound of the space."""
        self.space.limits.append((tuple(names), most))


DEFAULTS = Knobs()
"""Every rule's own choices."""


def up_to(limit: int, candidates: Sequence[int]) -> tuple[int, ...]:
    """The candidates that are not above ``limit``, which is one of them if it is below the largest."""
    return tuple(
        sorted({c for c in candidates if c < limit} | ({limit} if limit <= max(candidates) else set()))
    )
