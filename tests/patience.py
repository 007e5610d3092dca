"""Waiting for what other processes do. A deadline is for failures: a machine that is busy with much else must not meet it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LATE_S = 300.0
"""What takes seconds on an idle machine and has not come after so many will not come."""


def wait_until(found: Callable[[], T], what: Callable[[], object] = lambda: "it did not come") -> T:
    """Return the first true value of ``found()``; an assertion with ``what()`` fails where none comes in LATE_S seconds."""
    deadline = time.monotonic() + LATE_S
    while not (value := found()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)
    return value
