"""A library's own tensors by name, and the words of ``options``: what the emitted C and who calls it from Python agree on."""

from __future__ import annotations

from enum import IntEnum

HYPER = "hyper"
"""The optimizer's numbers: the learning rate, and what Adam's bias corrections have come to."""
SEED = "seed"
"""The gradient of a loss of prototypes with respect to the output."""
PLAN = "plan"
"""What a task-adaptive library has installed (``tt_rows.h``)."""
REQUEST = "request"
"""Which channels `install` trains, a bit for each channel of a candidate."""
OPTIONS = "options"
"""How `select` chooses: an `OptionWord` each."""
CRITERIA = ("tinytrain", "fisher", "fisher/memory", "fisher/compute", "l2", "random", "exact")
"""What channels are chosen by; the position is the device's number (``tt_select.h``)."""


class OptionWord(IntEnum):
    """The words of ``options``, 32 bits each.

    MEMORY: bytes, no more than the arena has. RATIO: numerator << 16 | denominator. CACHED_SAMPLES: the cache should have room for.
    """

    MEMORY = 0
    MACS_LOW = 1
    MACS_HIGH = 2
    CRITERION = 3
    RATIO = 4
    OVERFLOW = 5
    SEED_LOW = 6
    SEED_HIGH = 7
    CACHED_SAMPLES = 8
