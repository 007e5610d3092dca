"""The free numbers of a rule: its own choice, a record's, or the tuner's.

A rule asks for each of them by name, with the candidates and its own choice. What it may choose from depends on the kernel only,
never on another knob: so all knobs of a kernel are one design space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Knobs:
    """The rule's own choices, except where ``values`` holds a candidate under the knob's name."""

    def __init__(self, values: Mapping[str, int] | None = None) -> None:
        self.values = dict(values or {})

    def choose(self, name: str, candidates: Sequence[int], default: int) -> int:
        """One of ``candidates``."""
        value = self.values.get(name, default)
        return value if value in candidates else default


class AskedKnobs(Knobs):
    """The rule's own choices; ``asked`` says what it asked for, in order: name → (candidates, own choice)."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, tuple[tuple[int, ...], int]] = {}

    def choose(self, name: str, candidates: Sequence[int], default: int) -> int:
        """The rule's own choice."""
        self.asked[name] = (tuple(sorted({*candidates, default})), default)
        return default


DEFAULTS = Knobs()
"""Every rule's own choices."""


def up_to(limit: int, candidates: Sequence[int]) -> tuple[int, ...]:
    """The candidates that are not above ``limit``, which is one of them if it is below the largest."""
    return tuple(
        sorted({c for c in candidates if c < limit} | ({limit} if limit <= max(candidates) else set()))
    )
