"""Numbers and sizes that a user gives: what they may be, and what a library makes of them."""

from __future__ import annotations

import contextlib
import math
import operator
import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from numbers import Real
from typing import TypeGuard

from tvm_tinytrain.errors import BudgetError, PlanError

_UNITS = {"": 1, "B": 1, "KB": 1024, "KIB": 1024, "MB": 1024**2, "MIB": 1024**2}

LARGEST_FLOAT32 = 3.4028234663852886e38
_MAX_AXES = 6  # TT_MAX_NDIM of tinytrain.h


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a real number that is finite in float32 too; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) <= LARGEST_FLOAT32


def in_float32(value: float) -> float:
    """What a library makes of a number (`is_number`): 0 of 1e-50, 1 of 0.99999999."""
    return float(struct.unpack("<f", struct.pack("<f", float(value)))[0])


def as_whole(
    stage: str, thing: str, value: object, low: int | None, hint: str, high: int | None = None
) -> int:
    """`value` as an int; PlanError unless it is a whole number from `low` to `high` (None: no limit). Truth values are none."""
    found = None
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            found = operator.index(value)  # type: ignore[arg-type]  # that is the question
    if found is None or (low is not None and found < low) or (high is not None and found > high):
        limits = "" if low is None else f", {low} or more" if high is None else f", {low} to {high}"
        raise PlanError(stage, thing, repr(value), f"a whole number{limits}", hint)
    return found


def check_number(thing: str, value: object, low: float = 0.0, below: float = math.inf) -> None:
    """PlanError unless `value` is a number from `low` up, below `below`."""
    if not (is_number(value) and low <= float(value) and in_float32(value) < below):
        limit = f", below {below:g}" if below < math.inf else " that is finite"
        hint = "it means what PyTorch's option of this name does"
        raise PlanError("config", thing, repr(value), f"a number of at least {low:g}{limit}", hint)


def parse_bytes(text: int | str, thing: str = "memory budget") -> int:
    """Bytes from 262144, "256KB" or "0.5 MB" (1 KB = 1024 bytes); BudgetError of ``thing`` for anything else."""
    if not isinstance(text, (str, bool)):
        with contextlib.suppress(TypeError):
            return operator.index(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text) if isinstance(text, str) else None
    if match is None or match[2].upper() not in _UNITS:
        option = thing.removesuffix(" budget")
        hint = f"write e.g. {option}='256KB'"
        raise BudgetError("config", thing, repr(text), 'bytes as a number, or "256KB", "1MB"', hint)
    return int(Fraction(match[1]) * _UNITS[match[2].upper()])


def within_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape as a library's table of tensors says it, in six axes at most: of more, the first ones are one."""
    first = max(len(shape) - _MAX_AXES + 1, 0)
    return (math.prod(shape[:first]), *shape[first:]) if len(shape) > _MAX_AXES else tuple(shape)
