"""The vectorised proposal does what the specification says, written out with scalars as a device would."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.selection.problems import problems
from tvm_tinytrain.selection import Accounting, Budgets, FisherMap, Problem
from tvm_tinytrain.selection.knapsack import Items, Room, fill, prices, propose, take_by_price
from tvm_tinytrain.selection.problem import Candidate

Case = tuple[Accounting, FisherMap, Budgets]


def scalar_fill(
    candidates: Sequence[Candidate], taken: Sequence[int], room: Room, price: Sequence[int]
) -> tuple[list[int], int]:
    """Counts and the first shortage, with 64-bit cross products and no sort."""
    counts = list(taken)
    is_open = [k < c.usable for c, k in zip(candidates, counts, strict=True)]
    short, left_bytes, left_macs = 0, room.bytes, room.macs
    while any(is_open):
        best = -1
        for i, c in enumerate(candidates):
            if not is_open[i]:
                continue
            q = int(c.potentials[counts[i]])
            if best < 0 or q * price[best] > int(candidates[best].potentials[counts[best]]) * price[i]:
                best = i
        chosen = candidates[best]
        if chosen.bytes > left_bytes or chosen.macs > left_macs:
            short = short or (1 if chosen.bytes > left_bytes else -1)
            is_open[best] = False
            continue
        left_bytes, left_macs = left_bytes - chosen.bytes, left_macs - chosen.macs
        counts[best] += 1
        is_open[best] = counts[best] < chosen.usable
    return counts, short


def value(candidates: Sequence[Candidate], counts: Sequence[int]) -> int:
    return sum(int(c.potentials[:k].sum(dtype="uint64")) for c, k in zip(candidates, counts, strict=True))


@st.composite
def fills(draw: st.DrawFn) -> tuple[Sequence[Candidate], tuple[int, ...], Room]:
    accounting, fisher, _ = draw(problems(layers=5, channels=6))
    candidates = Problem.make(accounting, fisher, Budgets()).candidates
    taken = tuple(draw(st.integers(0, len(c.order))) for c in candidates)
    room_bytes = draw(st.integers(0, sum(c.bytes * len(c.order) for c in candidates)) | st.just(1 << 62))
    room_macs = draw(st.integers(0, sum(c.macs * len(c.order) for c in candidates)) | st.just(1 << 62))
    return candidates, taken, Room(room_bytes, room_macs)


@settings(max_examples=300)
@given(fills(), st.integers(0, 64))
def test_fill(case: tuple[Sequence[Candidate], tuple[int, ...], Room], a: int) -> None:
    candidates, taken, room = case
    price = prices(candidates, room, a)
    assert all(1 <= w <= 65535 for w in price)
    expected, short = scalar_fill(candidates, taken, room, price)
    assert list(fill(candidates, taken, room, price)) == expected
    assert take_by_price(Items.of(candidates, taken, room), len(candidates), room, price)[1] == short


@settings(max_examples=150)
@given(fills())
def test_proposal(case: tuple[Sequence[Candidate], tuple[int, ...], Room]) -> None:
    candidates, taken, room = case
    best: tuple[int, list[int], list[int]] = (-1, [], [])

    def attempt(a: int) -> int:
        nonlocal best
        counts, short = scalar_fill(candidates, taken, room, prices(candidates, room, a))
        if value(candidates, counts) > best[0]:
            best = (value(candidates, counts), counts, prices(candidates, room, a))
        return short

    low, high = 0, 64
    while high - low > 1:
        a = (low + high) // 2
        short = attempt(a)
        if short == 0:
            break
        if short > 0:
            low = a
        else:
            high = a
    if high - low == 1:
        attempt(0)
        attempt(64)
    counts, price = propose(candidates, taken, room)
    assert (list(counts), price) == (best[1], best[2])
    spent_bytes = sum(c.bytes * (k - t) for c, k, t in zip(candidates, counts, taken, strict=True))
    spent_macs = sum(c.macs * (k - t) for c, k, t in zip(candidates, counts, taken, strict=True))
    assert spent_bytes <= room.bytes and spent_macs <= room.macs
