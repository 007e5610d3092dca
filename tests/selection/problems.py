"""Random networks, potentials and budgets, and the three backbones' cost tables."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import strategies as st

from tvm_tinytrain.models import mcunet, mobilenet_v2, proxyless_nas
from tvm_tinytrain.selection import (
    Accounting,
    Budgets,
    ExactAccounting,
    FisherMap,
    LayerSpec,
    NetworkCosts,
    OptimizerCost,
    PaperAccounting,
    inverted_bottlenecks,
    network_costs,
)

BACKBONES = {"mcunet": mcunet, "mobilenet_v2": mobilenet_v2, "proxyless_nas": proxyless_nas}


@cache
def backbone(name: str) -> tuple[LayerSpec, ...]:
    """Layers of a backbone at 128×128."""
    spec = BACKBONES[name]().spec
    return inverted_bottlenecks(spec.stem_channels, spec.blocks, spec.mix_channels)


@cache
def backbone_costs(name: str) -> NetworkCosts:
    return network_costs(backbone(name))


@st.composite
def networks(draw: st.DrawFn, *, layers: int = 6, channels: int = 4, branches: bool = True) -> NetworkCosts:
    """Chains of small convolutions, now and then with a branch, a depthwise layer or a missing bias."""
    specs: list[LayerSpec] = []
    shape = (draw(st.integers(1, 3)), 6, 6)
    for index in range(draw(st.integers(1, layers))):
        depthwise = draw(st.booleans()) and 1 < shape[0] <= channels
        out = shape[0] if depthwise else draw(st.integers(1, channels))
        kernel, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 1, 2]))
        height, width = (-(-side // stride) for side in shape[1:])
        sources = None
        if branches and index > 1 and draw(st.booleans()):
            sources = (draw(st.integers(0, index - 1)),)
        after = (out, height, width)
        specs.append(
            LayerSpec(
                index,
                "conv2d",
                shape,
                after,
                (kernel, kernel),
                (stride, stride),
                shape[0] if depthwise else 1,
                bias=draw(st.booleans()),
                activation=draw(st.booleans()),
                sources=sources,
            )
        )
        shape = after
    return network_costs(specs)


# Few distinct values, so that ties are common; zero, subnormal and huge ones among them.
_POTENTIAL = st.one_of(
    st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0, 1e-3, 1e-30, 1e-42, 1e38]),
    st.floats(0, 100, width=32),
)


@st.composite
def potentials(draw: st.DrawFn, network: NetworkCosts) -> FisherMap:
    """Potentials of all layers of the network."""
    return FisherMap(
        {
            layer.id: np.array(
                draw(st.lists(_POTENTIAL, min_size=layer.channels, max_size=layer.channels)), np.float32
            )
            for layer in network
        }
    )


@st.composite
def problems(
    draw: st.DrawFn, *, layers: int = 6, channels: int = 4, branches: bool = True
) -> tuple[Accounting, FisherMap, Budgets]:
    """A network, its potentials, and budgets between nothing and everything, in one of the two accountings."""
    network = draw(networks(layers=layers, channels=channels, branches=branches))
    accounting: Accounting = draw(
        st.sampled_from(
            [
                PaperAccounting(network),
                PaperAccounting(network, "sgd"),
                ExactAccounting(network),
                ExactAccounting(network, OptimizerCost(0, accumulate=True)),
            ]
        )
    )
    everything = {layer.id: layer.channels for layer in network}
    low, high = accounting.memory_bytes({}), accounting.memory_bytes(everything)
    memory = draw(st.none() | st.integers(low, high))
    macs = draw(st.none() | st.integers(0, accounting.backward_macs(everything)))
    return accounting, draw(potentials(network)), Budgets(memory, macs)


def random_map(network: NetworkCosts, layers: tuple[int, ...], seed: int) -> FisherMap:
    """Potentials with the spread that real ones have: log-normal within a layer and across layers."""
    rng = np.random.default_rng(seed)
    return FisherMap(
        {
            layer: np.exp(rng.normal(rng.normal(0, 2), 1.5, network[layer].channels)).astype(np.float32)
            for layer in layers
        }
    )
