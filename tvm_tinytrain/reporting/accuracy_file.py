"""Rows of accuracies as ``tinytrain evaluate`` and benchmarks.accuracy write them, checked before anything is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from tvm_tinytrain.errors import ArchiveError

_TEXTS = ("network", "sampler", "domain", "method", "rate_by")
_NUMBERS = ("tasks", "accuracy", "memory_bytes", "backward_macs")
_NUMBERS_OR_NONE = ("interval", "gain")
_KEY = ("network", "sampler", "rate_by", "domain", "method")


def load_accuracy(path: Path) -> Sequence[Mapping[str, Any]]:
    """The rows of a JSON file; ArchiveError where it has none, or one lacks a value that a table needs."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        rows = raw["rows"] if isinstance(raw, dict) else raw
        # the benchmark's file has rows of other kinds too
        found = [row for row in rows if isinstance(row, dict) and "accuracy" in row and "method" in row]
        if not found:
            raise ValueError("no rows of accuracies")
        check_rows(found)
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "pass what `tinytrain evaluate --format json` or benchmarks.accuracy --json wrote"
        raise ArchiveError("report", str(path), error, "rows of accuracies", hint) from error


def check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """ValueError for the first row that lacks a value, holds one that cannot be, or says again what another one says."""
    seen: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(rows):
        _check(number, row)
        key = tuple(row[k] for k in _KEY)
        if key in seen:
            raise ValueError(f"rows {seen[key]} and {number}: {row['method']} on {row['domain']} twice")
        seen[key] = number


def _check(number: int, row: Mapping[str, Any]) -> None:
    for key in (*_TEXTS, *_NUMBERS, *_NUMBERS_OR_NONE):
        if key not in row:
            raise ValueError(f"row {number} without {key}")
        value = row[key]
        is_number = isinstance(value, Real) and math.isfinite(value)
        if not (
            isinstance(value, str)
            if key in _TEXTS
            else is_number or (value is None and key in _NUMBERS_OR_NONE)
        ):
            raise ValueError(f"row {number}: {key} {value!r}")
        if isinstance(value, str):
            value.encode()  # a half of a surrogate pair is no letter: a ValueError
    if not 0.0 <= row["accuracy"] <= 1.0:
        raise ValueError(f"row {number}: accuracy {row['accuracy']!r}, which is no share of 1")
