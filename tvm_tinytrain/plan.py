"""The two plans that cross every boundary of the compiler: which channels are updated, and where buffers lie.

Frozen, hashable values without any dependency on TVM, numpy or torch, so that the host, the emitted metadata and a
checkpoint can all carry them. Nothing here searches: selection makes an `UpdatePlan`, `tvm_tinytrain.memory`
turns a `MemoryProblem` into a `MemoryPlan`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

from tvm_tinytrain.errors import PlanError

_FORMAT = 1

_update_error = partial(PlanError, "update plan")
_problem_error = partial(PlanError, "memory problem")
_plan_error = partial(PlanError, "memory plan")


def _index(thing: str, value: object) -> int:
    """Return `value` as an int if it is an integer of any kind (Python's, numpy's), else raise."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _update_error(thing, repr(value), "an integer >= 0", "use the indices of layers and channels")
    return operator.index(value)


def _channels(thing: str, value: Iterable[int]) -> tuple[int, ...]:
    """Return `value` as a tuple, or raise if it is not a sorted list of distinct, non-negative integers."""
    items = tuple(_index(thing, item) for item in value)
    if not items:
        raise _update_error(thing, "no channel", "at least one", "leave the layer out of the plan")
    if items[0] < 0 or any(a >= b for a, b in pairwise(items)):
        hint = "give each channel index once, in ascending order"
        raise _update_error(thing, list(items), "sorted, unique, non-negative indices", hint)
    return items


@dataclass(frozen=True)
class LayerUpdate:
    """What of one layer (a convolution or linear weight with its bias) is trained.

    layer: id of the layer, in the order in which the forward pass meets the layers.
    outputs: indices of the trained *output* channels, ascending, at least one.
    inputs: indices of the trained *input* channels of these rows (per group), or None for all of them.
    weight, bias: whether the weight and the bias of these channels are trained; at least one of them.
    Raises PlanError where a list is not sorted, unique and non-negative, or where nothing is left to train.
    """

    layer: int
    outputs: tuple[int, ...]
    inputs: tuple[int, ...] | None = None
    weight: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", _index("layer id", self.layer))
        if self.layer < 0:
            raise _update_error("layer id", self.layer, "an integer >= 0", "use the layer's id")
        object.__setattr__(self, "outputs", _channels(f"outputs of layer {self.layer}", self.outputs))
        if self.inputs is not None:
            object.__setattr__(self, "inputs", _channels(f"inputs of layer {self.layer}", self.inputs))
        for name, flag in (("weight", self.weight), ("bias", self.bias)):
            if not isinstance(flag, bool):
                raise _update_error(
                    f"{name} of layer {self.layer}", f"{flag!r}", "true or false", "say whether it is trained"
                )
        if not (self.weight or self.bias):
            raise _update_error(
                f"layer {self.layer}",
                "neither weight nor bias is trained",
                "at least one of them",
                "leave the layer out of the plan",
            )


@dataclass(frozen=True)
class UpdatePlan:
    """The trained part of a network: {layer id: LayerUpdate}, immutable, hashable, with a stable digest.

    Reads like a mapping: `plan[layer]`, `layer in plan`, `len(plan)`, iteration over ascending layer ids.
    Layers may be given in any order; they are kept sorted by id. An empty plan (nothing is trained) is legal.
    Raises PlanError when a layer occurs twice.
    """

    layers: tuple[LayerUpdate, ...] = ()

    def __post_init__(self) -> None:
        layers = tuple(sorted(self.layers, key=lambda update: update.layer))
        for first, second in pairwise(layers):
            if first.layer == second.layer:
                raise _update_error(
                    f"layer {first.layer}",
                    "two entries",
                    "one entry for each layer",
                    "merge the channel lists",
                )
        object.__setattr__(self, "layers", layers)

    @classmethod
    def from_channels(cls, channels: Mapping[int, Iterable[int]]) -> UpdatePlan:
        """Make a plan that trains weight and bias of the given output channels: {layer id: ascending channels}."""
        return cls(tuple(LayerUpdate(layer, tuple(outputs)) for layer, outputs in channels.items()))

    @cached_property
    def _by_layer(self) -> dict[int, LayerUpdate]:
        return {update.layer: update for update in self.layers}

    def __getitem__(self, layer: int) -> LayerUpdate:
        """Return the update of `layer`; PlanError when the plan does not train it."""
        if layer not in self._by_layer:
            raise _update_error(
                f"layer {layer!r}",
                "not in the plan",
                f"one of {list(self)}",
                "test with `layer in plan` first",
            )
        return self._by_layer[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self._by_layer

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_layer)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def earliest(self) -> int | None:
        """The smallest trained layer id (the backward pass ends there), or None for an empty plan."""
        return self.layers[0].layer if self.layers else None

    def to_json(self) -> str:
        """Return the canonical text: sorted keys, no white space, the same for equal plans on every machine."""
        layers = [
            {
                "bias": u.bias,
                "inputs": None if u.inputs is None else list(u.inputs),
                "layer": u.layer,
                "outputs": list(u.outputs),
                "weight": u.weight,
            }
            for u in self.layers
        ]
        return json.dumps({"format": _FORMAT, "layers": layers}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> UpdatePlan:
        """Read what `to_json` wrote. Raises PlanError for anything else, saying which part is wrong."""
        hint = "pass a text written by UpdatePlan.to_json"
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise _update_error("json text", str(error), "a JSON object", hint) from error
        if (
            not isinstance(raw, dict)
            or set(raw) != {"format", "layers"}
            or not isinstance(raw["layers"], list)
        ):
            found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
            raise _update_error("json text", f"{found}", "an object with `format` and `layers`", hint)
        if raw["format"] != _FORMAT:
            raise _update_error(
                "json format",
                f"{raw['format']!r}",
                f"{_FORMAT}",
                "write the plan again with this version of tvm_tinytrain",
            )
        return cls(tuple(cls._layer_from_json(entry, hint) for entry in raw["layers"]))

    @staticmethod
    def _layer_from_json(entry: Any, hint: str) -> LayerUpdate:
        keys = {"bias", "inputs", "layer", "outputs", "weight"}
        if not isinstance(entry, dict) or set(entry) != keys:
            found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise _update_error("json layer", f"{found}", f"an object with {sorted(keys)}", hint)
        for name in ("outputs", "inputs"):
            if not isinstance(entry[name], list) and not (name == "inputs" and entry[name] is None):
                raise _update_error(
                    f"json {name} of layer {entry['layer']!r}", f"{entry[name]!r}", "a list of integers", hint
                )
        inputs = None if entry["inputs"] is None else tuple(entry["inputs"])
        return LayerUpdate(entry["layer"], tuple(entry["outputs"]), inputs, entry["weight"], entry["bias"])

    @cached_property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of `to_json()`; written into artifacts and checkpoints."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Buffer:
    """One piece of memory with a lifetime. Sizes, offsets and alignment are in bytes, times are program steps.

    lower, upper: the half-open lifetime [lower, upper): the buffer is live at step t when lower <= t < upper.
    Two buffers may share bytes exactly when their lifetimes are disjoint. Tensors that share storage by intent
    (in-place operators, views) are merged into one Buffer by the caller: union of lifetimes, largest size.
    align: a power of two. kind: free label (activation, gradient, ...) for reports. pool: the memory it lies in.
    offset: a fixed place in the pool that the planner must keep, or None.
    Raises PlanError when a field is out of range.
    """

    name: str
    size: int
    lower: int
    upper: int
    align: int = 8
    kind: str = "activation"
    pool: str = "sram"
    offset: int | None = None

    def __post_init__(self) -> None:
        thing = f"buffer {self.name!r}"
        if self.size < 1:
            raise _problem_error(thing, f"size {self.size}", "at least 1 byte", "leave it out")
        if not 0 <= self.lower < self.upper:
            raise _problem_error(
                thing,
                f"lifetime [{self.lower}, {self.upper})",
                "0 <= lower < upper",
                "lifetimes are half-open; a buffer used at step t only has [t, t+1)",
            )
        if self.align < 1 or self.align & (self.align - 1):
            raise _problem_error(thing, f"align {self.align}", "a power of two", "round it up")
        if self.offset is not None and (self.offset < 0 or self.offset % self.align):
            raise _problem_error(
                thing,
                f"fixed offset {self.offset}",
                f"a non-negative multiple of {self.align}",
                "move it or drop the fixed offset",
            )

    def overlaps(self, other: Buffer) -> bool:
        """Say whether both are live at some step, so that they may not share bytes."""
        return self.lower < other.upper and other.lower < self.upper


# CSV column -> (field of Buffer, value of an absent column). The first four are google/minimalloc's.
_COLUMNS: dict[str, tuple[str, Any]] = {
    "id": ("name", None),
    "lower": ("lower", None),
    "upper": ("upper", None),
    "size": ("size", None),
    "alignment": ("align", 1),
    "kind": ("kind", "activation"),
    "pool": ("pool", "sram"),
    "offset": ("offset", None),
}
_REQUIRED = ("id", "lower", "upper", "size")
_INTEGERS = ("lower", "upper", "size", "alignment", "offset")


@dataclass(frozen=True)
class MemoryProblem:
    """Buffers of *one* pool that have to be placed, and the bytes there are (None: as few as possible).

    Raises PlanError for duplicate names, for buffers of several pools (see `split`), and for a negative capacity.
    """

    buffers: tuple[Buffer, ...]
    capacity: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "buffers", tuple(self.buffers))
        if self.capacity is not None and self.capacity < 0:
            raise _problem_error("capacity", f"{self.capacity} bytes", ">= 0", "give the pool's size")
        seen: set[str] = set()
        for buffer in self.buffers:
            if buffer.name in seen:
                raise _problem_error(
                    f"buffer {buffer.name!r}",
                    "two buffers of that name",
                    "unique names",
                    "rename one of them",
                )
            seen.add(buffer.name)
        pools = sorted({buffer.pool for buffer in self.buffers})
        if len(pools) > 1:
            raise _problem_error(
                "pools",
                ", ".join(pools),
                "buffers of one pool",
                "make one problem for each pool with MemoryProblem.split",
            )

    @classmethod
    def split(
        cls, buffers: Iterable[Buffer], capacity: Mapping[str, int] | None = None
    ) -> dict[str, MemoryProblem]:
        """Sort buffers of several pools into one problem for each, {pool: problem}, in order of the pools' names.

        capacity: bytes of each pool; a pool that is not named has no limit.
        """
        by_pool: dict[str, list[Buffer]] = {}
        for buffer in buffers:
            by_pool.setdefault(buffer.pool, []).append(buffer)
        return {pool: cls(tuple(by_pool[pool]), (capacity or {}).get(pool)) for pool in sorted(by_pool)}

    @classmethod
    def from_csv(cls, text: str, capacity: int | None = None) -> MemoryProblem:
        """Read google/minimalloc's format: a header with id, lower, upper, size, and optionally the columns
        alignment (default 1), kind, pool, offset; other columns are an error. Raises PlanError with the line."""
        rows = csv.DictReader(io.StringIO(text))
        header = list(rows.fieldnames or ())
        if not set(_REQUIRED) <= set(header) or not set(header) <= set(_COLUMNS):
            raise _problem_error(
                "csv line 1",
                ",".join(header),
                "columns " + ",".join(_COLUMNS),
                "write at least " + ",".join(_REQUIRED),
            )
        return cls(tuple(cls._row(row, number) for number, row in enumerate(rows, start=2)), capacity)

    @staticmethod
    def _row(row: dict[str, Any], number: int) -> Buffer:
        values: dict[str, Any] = {}
        for column, (name, default) in _COLUMNS.items():
            text = row.get(column)
            values[name] = default if text in (None, "") else text
            if None in row or (column in _REQUIRED and values[name] is None):
                raise _problem_error(
                    f"csv line {number}",
                    f"{list(row.values())}",
                    "one value for each column",
                    "count the commas",
                )
            if column in _INTEGERS and isinstance(values[name], str):
                try:
                    values[name] = int(values[name])
                except ValueError as error:
                    raise _problem_error(
                        f"csv line {number}, {column}",
                        repr(text),
                        "an integer",
                        "write bytes and steps as plain decimals",
                    ) from error
        return Buffer(**values)

    def to_csv(self) -> str:
        """Write google/minimalloc's format; a column beyond its four is written only where a buffer needs it."""
        columns = [
            name
            for index, (name, (attribute, default)) in enumerate(_COLUMNS.items())
            if index < 4 or any(getattr(buffer, attribute) != default for buffer in self.buffers)
        ]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        for buffer in self.buffers:
            values = (getattr(buffer, _COLUMNS[name][0]) for name in columns)
            writer.writerow("" if value is None else value for value in values)
        return out.getvalue()


@dataclass(frozen=True)
class MemoryPlan:
    """The answer to a MemoryProblem: an offset in bytes for each buffer.

    Reads like a mapping from buffer name to offset. peak: the bytes the pool needs, max(offset + size).
    lower_bound: bytes that no placement can do without; peak == lower_bound proves the plan optimal.
    """

    offsets: tuple[tuple[str, int], ...]
    peak: int
    lower_bound: int
    _index: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        offsets = tuple((name, offset) for name, offset in self.offsets)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "_index", dict(offsets))

    def __getitem__(self, name: str) -> int:
        if name not in self._index:
            raise _plan_error(
                f"buffer {name!r}",
                "no offset",
                "a buffer of the planned problem",
                "plan the problem that holds it",
            )
        return self._index[name]

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self.offsets)
