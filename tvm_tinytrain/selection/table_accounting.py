"""Costs from the tables that a task-adaptive library carries: host and device choose from the same numbers.

    bytes  activation_bytes[earliest trained candidate] + Σ k · channel_bytes
    MACs   Σ links that a trained candidate needs       + Σ k · channel_macs

k is the number of trained channels of a candidate; costs are per sample. `select` with a `TableAccounting`
and `tt_select` (``targets/runtime/adapt/tt_select.h``) with the same tables give the same plan, bit for bit.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection.accounting import Counts, ExactAccounting
from tvm_tinytrain.selection.cost import LayerCost, NetworkCosts
from tvm_tinytrain.selection.liveness import live_bytes

MAX_CANDIDATES = 64
_UINT16, _UINT32, _UINT64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1


@dataclass(frozen=True)
class TableCandidate:
    """A layer that may be trained. channels: of its output. channel_bytes, channel_macs: what one trained
    channel adds. bias: whether the layer's bias is trained with the weight."""

    layer: int
    channels: int
    weights: int
    forward_macs: int
    channel_bytes: int
    channel_macs: int
    bias: bool = True


@dataclass(frozen=True)
class ChainLink:
    """A part of the backward pass that runs when a candidate of the bit mask `needed` is trained; bit i is
    the candidate at position i."""

    needed: int
    macs: int


@dataclass(frozen=True)
class TableAccounting:
    """The `Accounting` of a library's tables.

    candidates: in ascending order of layer id, at most 64. activation_bytes: by the position of the earliest
    trained candidate, with one more entry for the empty plan. links: the backward pass without the
    candidates' own weight gradients. full_macs: FullTrain's backward pass.

    Raises PlanError where the tables contradict each other or a number does not fit the device's type.
    """

    candidates: tuple[TableCandidate, ...]
    activation_bytes: tuple[int, ...]
    links: tuple[ChainLink, ...]
    full_macs: int

    def __post_init__(self) -> None:
        count = len(self.candidates)
        _check("candidates", count, 1, MAX_CANDIDATES)
        _check("activation_bytes", len(self.activation_bytes), count + 1, count + 1)
        before = -1
        for c in self.candidates:
            _check(f"layer id behind layer {before}", c.layer, before + 1, _UINT16)
            before = c.layer
            for name, low, high in (
                ("channels", 1, _UINT16),
                ("weights", 1, _UINT32),
                ("forward_macs", 1, _UINT32),
                ("channel_bytes", 0, _UINT32),
                ("channel_macs", 0, _UINT32),
            ):
                _check(f"{name} of layer {c.layer}", getattr(c, name), low, high)
        for value in self.activation_bytes:
            _check("activation_bytes", value, 0, _UINT32)
        for link in self.links:
            _check("mask of a link", link.needed, 0, _UINT64)
            _check("MACs of a link", link.macs, 0, _UINT32)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> TableAccounting:
        """Read ``metadata["adaptive"]`` of a task-adaptive library; PlanError where it is missing or malformed."""
        try:
            raw = metadata["adaptive"]
            return cls(
                tuple(_candidate(entry) for entry in raw["candidates"]),
                tuple(operator.index(value) for value in raw["activation_bytes"]),
                tuple(
                    ChainLink(operator.index(link["needed"]), operator.index(link["macs"]))
                    for link in raw["links"]
                ),
                operator.index(raw["full_macs"]),
            )
        except (KeyError, TypeError) as error:
            found = f"{type(error).__name__}: {error}"
            hint = "build the library with update=TaskAdaptive(...)"
            raise PlanError(
                "selection", "metadata", found, "candidates, activation_bytes, links, full_macs", hint
            ) from error

    @classmethod
    def from_costs(cls, accounting: ExactAccounting, candidates: Sequence[int]) -> TableAccounting:
        """Make tables from a cost model: for networks that are not compiled yet.

        Activations of a depth are the live bytes when *all* candidates from there on are trained, as in a
        library; a planner may need more.
        """
        network, ids = accounting.network, sorted(set(candidates))
        entries = tuple(
            TableCandidate(
                layer=layer.id,
                channels=layer.channels,
                weights=layer.weights,
                forward_macs=layer.forward_macs,
                channel_bytes=accounting.channel_bytes(layer),
                channel_macs=accounting.channel_macs(layer),
                bias=layer.biases_per_channel > 0,
            )
            for layer in (network[i] for i in ids)
        )
        activation = tuple(
            live_bytes(network, {i: network[i].in_bytes for i in ids[depth:]}).peak
            for depth in range(len(ids) + 1)
        )
        links: dict[int, int] = {}
        for layer in network:
            needed = sum((network.downstream[i] >> layer.id & 1) << at for at, i in enumerate(ids))
            if needed:
                links[needed] = links.get(needed, 0) + layer.dx_macs
        chain = tuple(ChainLink(needed, macs) for needed, macs in links.items())
        return cls(entries, activation, chain, accounting.full_macs)

    @property
    def layers(self) -> tuple[int, ...]:
        """Ids of the candidate layers: what `TaskAdaptive(candidates=...)` takes."""
        return tuple(c.layer for c in self.candidates)

    @property
    def total_channels(self) -> int:
        """Output channels of all candidates: the length of the potentials, and of the bit map, on a device."""
        return sum(c.channels for c in self.candidates)

    @cached_property
    def _position(self) -> dict[int, int]:
        return {c.layer: i for i, c in enumerate(self.candidates)}

    @cached_property
    def network(self) -> NetworkCosts:
        """The candidates in their places; what the tables do not say of a layer is 0."""
        found = self._position
        return NetworkCosts(
            tuple(
                _layer_cost(i, self.candidates[found[i]] if i in found else None)
                for i in range(self.candidates[-1].layer + 1)
            )
        )

    def channel_bytes(self, layer: LayerCost) -> int:
        return self._at(layer.id).channel_bytes

    def channel_macs(self, layer: LayerCost) -> int:
        return self._at(layer.id).channel_macs

    def memory_bytes(self, counts: Counts) -> int:
        trained = [i for i, k in counts.items() if k]
        rows = sum(self._at(i).channel_bytes * counts[i] for i in trained)
        earliest = min((self._position[i] for i in trained), default=len(self.candidates))
        return self.activation_bytes[earliest] + rows

    def backward_macs(self, counts: Counts) -> int:
        trained = [i for i, k in counts.items() if k]
        own = sum(self._at(i).channel_macs * counts[i] for i in trained)
        selected = sum(1 << self._position[i] for i in trained)
        return own + sum(link.macs for link in self.links if link.needed & selected)

    def bitmap(self, plan: UpdatePlan) -> bytes:
        """Return a plan as a library takes it: bit c, low bits first, is channel c of all candidates' channels
        one after the other. PlanError for a layer or channel that is not a candidate's."""
        bits = bytearray((self.total_channels + 7) // 8)
        for update in plan.layers:
            candidate = self._at(update.layer)
            _check(f"channel of layer {update.layer}", update.outputs[-1], 0, candidate.channels - 1)
            first = sum(c.channels for c in self.candidates[: self._position[update.layer]])
            for channel in update.outputs:
                bits[first + channel >> 3] |= 1 << (first + channel & 7)
        return bytes(bits)

    def plan(self, bitmap: bytes) -> UpdatePlan:
        """Return the plan of a device's bit map; PlanError for another length or a bit behind the last channel."""
        size = (self.total_channels + 7) // 8
        _check("bytes of the bit map", len(bitmap), size, size)
        bits = int.from_bytes(bitmap, "little")
        _check("highest bit of the bit map", bits.bit_length(), 0, self.total_channels)
        updates = []
        for c in self.candidates:
            outputs = tuple(k for k in range(c.channels) if bits >> k & 1)
            bits >>= c.channels
            if outputs:
                updates.append(LayerUpdate(c.layer, outputs, bias=c.bias))
        return UpdatePlan(tuple(updates))

    def _at(self, layer: int) -> TableCandidate:
        if layer not in self._position:
            hint = "pass candidates=accounting.layers"
            raise PlanError(
                "selection", f"layer {layer}", "no candidate", f"one of {list(self.layers)}", hint
            )
        return self.candidates[self._position[layer]]


def _check(thing: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        allowed = f"{low} to {high}" if low != high else f"{low}"
        raise PlanError("selection", thing, value, allowed, "the tables are another library's or damaged")


def _candidate(entry: Mapping[str, Any]) -> TableCandidate:
    return TableCandidate(
        layer=operator.index(entry["layer"]),
        channels=operator.index(entry["channels"]),
        weights=operator.index(entry["weights"]),
        forward_macs=operator.index(entry["forward_macs"]),
        channel_bytes=operator.index(entry["channel_bytes"]),
        channel_macs=operator.index(entry["channel_macs"]),
        bias=bool(entry.get("bias", True)),
    )


def _layer_cost(index: int, candidate: TableCandidate | None) -> LayerCost:
    c = candidate or TableCandidate(index, 1, 0, 0, 0, 0, bias=False)
    return LayerCost(
        id=index,
        kind="frozen" if candidate is None else "candidate",
        weights=c.weights,
        channels=c.channels,
        weights_per_channel=c.weights // c.channels,
        inputs=0,
        biases_per_channel=int(c.bias),
        forward_macs=c.forward_macs,
        dx_macs=0,
        dw_macs_per_channel=c.channel_macs,
        in_bytes=0,
        out_bytes=0,
        groups=1,
        depthwise=False,
        activation=False,
        block=None,
        skip=None,
        sources=() if index == 0 else (index - 1,),
    )
