"""What decides results, as JSON values: options, samplers, functions. A file of results says by them what it belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np


def describe(value: Any) -> Any:
    """Numbers and texts as they are, a dataclass with its kind and fields, an array by its contents, a function by its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()[:16]]
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, partial):
        return {"kind": describe(value.func), "arguments": describe([value.args, value.keywords])}
    if is_dataclass(value) and not isinstance(value, type):
        return {"kind": _name(type(value)), **describe_fields(value)}
    return _name(value if hasattr(value, "__qualname__") else type(value))


def describe_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name."""
    return {f.name: describe(getattr(value, f.name)) for f in fields(value)}


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
