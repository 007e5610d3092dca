"""Where the trained rows of a task-adaptive library lie, by the plan that is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def row_places(plan: npt.NDArray[Any], adaptive: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """{row tensor: (offset in the arena, trained channels, bytes of a row)}, from the tensor ``plan`` and the metadata's block
    ``adaptive``."""
    words, layout = np.asarray(plan), adaptive["plan_words"]
    return {
        row["name"]: (
            int(words[layout["offsets"] + i]),
            int(words[layout["rows"] + row["candidate"]]),
            int(row["row_bytes"]),
        )
        for i, row in enumerate(adaptive["rows"])
    }


def trained_row_names(adaptive: Mapping[str, Any]) -> list[str]:
    """Names of the rows that hold weights and biases; the others are gradients, moments and lists of channels."""
    return [str(row["name"]) for row in adaptive["rows"] if row["kind"] == "copy"]
