"""A two-budget knapsack over channels at a fixed depth: the proposal step of the criterion "exact".

All channels of a layer cost the same, so within a layer they are taken in order of potential, and a layer
that has no room for its next channel is *closed*. With one price for both budgets ::

    raw_i = a · min(2^20, ⌊bytes_i · 2^20 / room_bytes⌋) + (64 - a) · min(2^20, ⌊macs_i · 2^20 / room_macs⌋)
    w_i   = max(1, ⌊raw_i · 65535 / max(1, max raw)⌋)           (uint64; max over the layers in play)

channels are taken by descending q/w (compared as q·w' > q'·w, below 2^48; ties to the smaller layer, then
to the earlier channel) until every layer is used up or closed. What closes the first layer says where to move
``a``: up if memory ran out (alone or with compute), down if compute did. So: low, high = 0, 64; while they are
more than 1 apart, try a = (low + high) / 2 and put it in place of low or high; stop for good where nothing
closed a layer. Then try 0 and 64. The proposal is the best of these, the first where equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.selection.problem import Candidate, Counts

STEPS = 64
_SCALE = 1 << 20
_LARGEST = 65535


@dataclass(frozen=True)
class Room:
    """Bytes and multiply-accumulates that channels may take."""

    bytes: int
    macs: int

    def less(self, candidate: Candidate, count: int = 1) -> Room:
        """The room that is left when `count` channels of a layer are taken."""
        return Room(self.bytes - count * candidate.bytes, self.macs - count * candidate.macs)

    def fits(self, candidate: Candidate) -> int:
        """How many channels of this layer alone there is room for; all of them where they cost nothing."""
        pairs = ((self.bytes, candidate.bytes), (self.macs, candidate.macs))
        return max(0, min((room // cost for room, cost in pairs if cost), default=len(candidate.order)))

    @property
    def overdrawn(self) -> bool:
        """Whether something did not fit."""
        return self.bytes < 0 or self.macs < 0


def prices(candidates: Sequence[Candidate], room: Room, a: int) -> list[int]:
    """w of each layer for direction `a` in 0 (compute alone) to 64 (memory alone)."""

    def share(cost: int, limit: int) -> int:
        return min(_SCALE, cost * _SCALE // max(1, limit))

    raw = [a * share(c.bytes, room.bytes) + (STEPS - a) * share(c.macs, room.macs) for c in candidates]
    largest = max(1, max(raw))
    return [max(1, value * _LARGEST // largest) for value in raw]


@dataclass(frozen=True)
class Items:
    """All usable channels of the layers in play, flat: layer position, potential (uint64), bytes, macs."""

    layer: npt.NDArray[np.int64]
    potential: npt.NDArray[np.uint64]
    bytes: npt.NDArray[np.int64]
    macs: npt.NDArray[np.int64]

    @staticmethod
    def of(candidates: Sequence[Candidate], taken: Counts, room: Room) -> Items:
        """Channels that are not taken yet, in order of potential; of each layer one more than fits alone."""
        spans = [min(max(0, c.usable - k), room.fits(c) + 1) for c, k in zip(candidates, taken, strict=True)]
        ranked = [c.potentials[k : k + n] for c, k, n in zip(candidates, taken, spans, strict=True)]
        return Items(
            np.repeat(np.arange(len(spans)), spans),
            np.concatenate(ranked).astype(np.uint64),
            np.repeat(np.array([c.bytes for c in candidates], np.int64), spans),
            np.repeat(np.array([c.macs for c in candidates], np.int64), spans),
        )


def take_by_price(
    items: Items, layers: int, room: Room, price: Sequence[int]
) -> tuple[npt.NDArray[np.int64], int]:
    """Take channels by descending q/w. Returns the number taken of each layer, and which budget closed the
    first layer: 1 memory, -1 compute, 0 none."""
    # ⌊q · 2^32 / w⌋ orders fractions exactly for w < 2^16: unequal ones differ by more than 2^-32.
    density = (items.potential << np.uint64(32)) // np.array(price, np.uint64)[items.layer]
    order = np.argsort(~density, kind="stable")
    layer = items.layer[order]
    needed_bytes, needed_macs = items.bytes[order], items.macs[order]
    short = 0
    while True:
        over_bytes = np.cumsum(needed_bytes) > room.bytes
        over = over_bytes | (np.cumsum(needed_macs) > room.macs)
        if not over.any():
            return np.bincount(layer, minlength=layers), short
        at = int(np.argmax(over))
        short = short or (1 if over_bytes[at] else -1)
        keep = (np.arange(len(layer)) < at) | (layer != layer[at])
        layer, needed_bytes, needed_macs = layer[keep], needed_bytes[keep], needed_macs[keep]


def fill(candidates: Sequence[Candidate], taken: Counts, room: Room, price: Sequence[int]) -> Counts:
    """Add channels to `taken` by descending q/w while there is room."""
    added, _ = take_by_price(Items.of(candidates, taken, room), len(candidates), room, price)
    return tuple(k + int(n) for k, n in zip(taken, added, strict=True))


def propose(candidates: Sequence[Candidate], taken: Counts, room: Room) -> tuple[Counts, list[int]]:
    """Add channels to `taken` within the room. Returns the best counts found and the prices behind them."""
    items = Items.of(candidates, taken, room)
    best: tuple[int, Counts, list[int]] | None = None

    def attempt(a: int) -> int:
        nonlocal best
        price = prices(candidates, room, a)
        added, short = take_by_price(items, len(candidates), room, price)
        counts = tuple(k + int(n) for k, n in zip(taken, added, strict=True))
        value = sum(int(c.prefix[k]) for c, k in zip(candidates, counts, strict=True))
        if best is None or value > best[0]:
            best = (value, counts, price)
        return short

    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        short = attempt(middle)
        if not short:
            break
        low, high = (middle, high) if short > 0 else (low, middle)
    else:
        attempt(0)
        attempt(STEPS)
    assert best is not None
    return best[1], best[2]
