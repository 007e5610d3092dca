"""Names of parameters: C identifiers, unique, near to what the model file calls them."""

from __future__ import annotations

import re


class NameSupply:
    """Hands out each name once; a second ``fc.weight`` becomes ``fc_weight_1``."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def unique(self, name: str) -> str:
        """``features.0.weight`` → ``features_0_weight``; a name that would begin with a digit gets a ``v``."""
        base = clean_name(name.removeprefix("onnx::")) or "v"
        if base[0].isdigit():
            base = f"v{base}"
        candidate, count = base, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{base}_{count}"
        self._taken.add(candidate)
        return candidate


def clean_name(name: str) -> str:
    """The letters, digits and underscores of a C identifier: ``features.0.weight`` → ``features_0_weight``."""
    return re.sub(r"\W", "_", name)
