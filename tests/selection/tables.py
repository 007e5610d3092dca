"""Random tables of task-adaptive libraries, potentials and budgets for them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tvm_tinytrain.selection import Budgets, ChainLink, FisherMap, TableAccounting, TableCandidate

# Few distinct values, so that ties are common; zeros, subnormals and the ends of the range among them.
_POTENTIAL = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, 3.0, 1e-3, 1e-30, 1e-42, 1.4e-45, 1e38, 3.4028234e38]),
    st.floats(0, 100, width=32),
)


@st.composite
def tables(draw: st.DrawFn, *, candidates: int = 6, channels: int = 6) -> TableAccounting:
    """Any tables: costs from nothing to very much, activations that do not fall with the depth, any links."""
    layers = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=candidates)))
    cost = st.integers(0, 3) | st.integers(1, 200) | st.integers(1, 1 << 22)
    entries = tuple(
        TableCandidate(
            layer,
            draw(st.integers(1, channels)),
            draw(st.integers(1, 8) | st.integers(1, (1 << 32) - 1)),
            draw(st.integers(1, 8) | st.integers(1, (1 << 32) - 1)),
            draw(cost),
            draw(cost),
            draw(st.booleans()),
        )
        for layer in layers
    )
    count = len(layers)
    activation = draw(st.lists(st.integers(0, 5000), min_size=count + 1, max_size=count + 1))
    masks = st.integers(0, (1 << count) - 1) | st.just((1 << 64) - 1)
    links = draw(st.lists(st.builds(ChainLink, masks, st.integers(0, 3000)), max_size=8))
    everything = sum(c.channel_macs * c.channels for c in entries) + sum(link.macs for link in links)
    return TableAccounting(entries, tuple(activation), tuple(links), everything)


@st.composite
def cases(
    draw: st.DrawFn, *, candidates: int = 6, channels: int = 6
) -> tuple[TableAccounting, Budgets, FisherMap]:
    """Tables with potentials and with budgets from barely enough for the frozen network to everything."""
    made = draw(tables(candidates=candidates, channels=channels))
    everything = {c.layer: c.channels for c in made.candidates}
    low, high = (
        made.memory_bytes({}),
        max(made.activation_bytes) + sum(c.channel_bytes * c.channels for c in made.candidates),
    )
    memory = draw(st.none() | st.integers(low, max(low, high)) | st.just(low))
    macs = draw(st.none() | st.integers(0, made.backward_macs(everything)) | st.just(0))
    fisher = {
        c.layer: np.array(draw(st.lists(_POTENTIAL, min_size=c.channels, max_size=c.channels)), np.float32)
        for c in made.candidates
    }
    return made, Budgets(memory, macs), FisherMap(fisher)


def random_tables(rng: np.random.Generator, count: int, most_channels: int) -> TableAccounting:
    """Tables like those of a network: monotone activations, a chain that early layers pay for. A third have
    branches too, so that what a plan costs besides its channels depends on more than its depth."""
    channels = rng.integers(1, most_channels + 1, count)
    weights = rng.integers(9, 400, count) * channels
    entries = tuple(
        TableCandidate(
            layer=3 + 2 * i,
            channels=int(channels[i]),
            weights=int(weights[i]),
            forward_macs=int(weights[i] * rng.integers(16, 1000)),
            channel_bytes=int(16 * (weights[i] // channels[i] + 1)),
            channel_macs=int(rng.integers(100, 40_000)),
        )
        for i in range(count)
    )
    activation = np.sort(rng.integers(10_000, 400_000, count + 1))[::-1]
    links = tuple(
        ChainLink((2 << i) - 1, int(rng.integers(10_000, 900_000)))
        for i in range(count)
        if rng.random() < 0.9
    )
    if rng.random() < 0.34:
        owners = rng.integers(0, count, 2 * count)
        links += tuple(ChainLink(1 << int(i), int(rng.integers(10_000, 2_000_000))) for i in owners)
    full = sum(c.channel_macs * c.channels for c in entries) + sum(link.macs for link in links)
    return TableAccounting(entries, tuple(int(v) for v in activation), links, 3 * full)


def random_potentials(rng: np.random.Generator, tables: TableAccounting, kind: str) -> FisherMap:
    """Potentials of a kind: "spread" over orders of magnitude as real ones, "ties", "sparse", "huge" ranges,
    "subnormal", "zero"."""

    def draw(size: int) -> np.ndarray:
        spread = np.exp(rng.normal(rng.normal(0, 2), 1.5, size))
        if kind == "ties":
            return rng.integers(0, 4, size).astype(np.float64)
        if kind == "sparse":
            return np.where(rng.random(size) < 0.7, 0.0, spread)
        if kind == "huge":
            return 10.0 ** rng.uniform(-44, 38, size)
        if kind == "subnormal":
            return rng.integers(0, 1 << 23, size) * 2.0**-149
        return np.zeros(size) if kind == "zero" else spread

    return FisherMap({c.layer: draw(c.channels).astype(np.float32) for c in tables.candidates})


KINDS = ("spread", "ties", "sparse", "huge", "subnormal", "zero")


def random_budgets(rng: np.random.Generator, tables: TableAccounting) -> Budgets:
    """Budgets that leave room for some channels, or hardly any, or do not bind."""
    everything = {c.layer: c.channels for c in tables.candidates}
    low, high = tables.memory_bytes({}), tables.memory_bytes(everything)
    part = float(rng.choice([0.0, 1e-3, 0.02, 0.1, 0.3, 1.0]))
    memory = None if rng.random() < 0.1 else int(low + part * rng.random() * max(0, high - low))
    part = float(rng.choice([0.0, 1e-3, 0.05, 0.15, 0.4, 1.0]))
    macs = None if rng.random() < 0.1 else int(part * rng.random() * tables.backward_macs(everything))
    return Budgets(memory, macs)


def staircase(rng: np.random.Generator) -> tuple[TableAccounting, Budgets, FisherMap]:
    """Tables on which the search proposes too much four times in a row and has to give channels back.

    What fits best costs more than is left as soon as its link is counted; without it the next best is taken,
    whose link is dearer still. Fillers of equal potential per price are there to be given back.
    """
    limit = 1000
    steps = ((998, 80, 1000.0), (900, 200, 100.0), (760, 450, 10.0), (500, 700, 1.0))  # MACs, link, potential
    entries = [TableCandidate(0, 1, 1, 1, 1, 1)]
    links = []
    potentials = [np.array([0.5], np.float32)]
    for macs, link, potential in steps:
        position = len(entries)
        entries.append(TableCandidate(position, 1, 1, 1, 1, macs - int(rng.integers(0, 15))))
        links.append(ChainLink(1 << position, link + int(rng.integers(0, 15))))
        potentials.append(np.array([potential], np.float32))
    for _ in range(int(rng.integers(1, 4))):
        cost, channels = int(rng.integers(1, 4)) * 4, int(rng.integers(1, 30))
        entries.append(TableCandidate(len(entries), channels, 1, 1, int(rng.integers(1, 3)), cost))
        potentials.append(np.full(channels, cost * 2.0**-12, np.float32))
    tables = TableAccounting(tuple(entries), (10,) * (len(entries) + 1), tuple(links), limit)
    memory = None if rng.random() < 0.5 else int(rng.integers(30, 80))
    return tables, Budgets(memory, limit), FisherMap(dict(enumerate(potentials)))
