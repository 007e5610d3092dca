"""Fisher potentials of a network's candidate layers, by layer and output channel."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import fsum

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.selection.integers import SplitMix64

_FORMAT = 1
Potentials = Mapping[int, npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class FisherMap:
    """{layer id: Δ}, Δ float32[output channels] with Δ_o = 1/(2N) Σ_n (Σ_d a_nd · g_nd)² (TinyTrain, eq. 3).

    N samples, d over the positions of channel o, a the layer's output activation, g the loss's gradient
    there. Only ratios of potentials matter, so a constant factor may be left out. Vectors are copied and
    read-only. Compares by value. Raises PlanError for an empty map, an empty or multi-dimensional vector,
    and values that are not float32.
    """

    layers: Potentials

    def __post_init__(self) -> None:
        hint = "give one float32 vector for each candidate layer"
        kept: dict[int, npt.NDArray[np.float32]] = {}
        for layer in sorted(self.layers):
            vector = np.asarray(self.layers[layer])
            if vector.ndim != 1 or vector.size == 0 or vector.dtype != np.float32:
                found = f"{vector.dtype}{list(vector.shape)}"
                raise PlanError("selection", f"potentials of layer {layer}", found, "float32[channels]", hint)
            kept[layer] = vector.copy()
            kept[layer].setflags(write=False)
        if not kept:
            raise PlanError("selection", "Fisher map", "no layer", "at least one", hint)
        object.__setattr__(self, "layers", kept)

    def __getitem__(self, layer: int) -> npt.NDArray[np.float32]:
        """Potentials of one layer; PlanError when the map does not hold it."""
        if layer not in self.layers:
            raise PlanError(
                "selection", f"potentials of layer {layer}", "none", f"one of {list(self)}", "measure it"
            )
        return self.layers[layer]

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FisherMap) or list(self) != list(other):
            return False
        return all(self[i].tobytes() == other[i].tobytes() for i in self)

    def to_json(self) -> str:
        """Return the canonical text; reading it back gives the same bits."""
        layers = {str(i): [float(v) for v in vector] for i, vector in self.layers.items()}
        return json.dumps({"format": _FORMAT, "layers": layers}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> FisherMap:
        """Read what `to_json` wrote. Raises PlanError for anything else."""
        try:
            raw = json.loads(text)
            if set(raw) != {"format", "layers"} or raw["format"] != _FORMAT:
                raise ValueError(f"keys {sorted(raw)}, format {raw.get('format')!r}")
            return cls({int(i): np.array(values, np.float32) for i, values in raw["layers"].items()})
        except (ValueError, TypeError, AttributeError) as error:
            allowed = f"an object with `layers` and `format` {_FORMAT}"
            raise PlanError("selection", "Fisher map", error, allowed, "pass what to_json wrote") from error


def squared_norms(weights: Mapping[int, npt.NDArray[np.float32]]) -> FisherMap:
    """Potentials of the criterion "l2": ‖w_o‖² of each output channel, {layer: weight[channels, ...]} → map.

    Sums are rounded once, so every machine finds the same bits. They are known when a library is built; a
    device carries them as constants.
    """
    return FisherMap(
        {
            layer: np.array([fsum(float(v) ** 2 for v in row.ravel()) for row in weight], np.float32)
            for layer, weight in weights.items()
        }
    )


def random_potentials(channels: Mapping[int, int], seed: int) -> tuple[dict[int, int], FisherMap]:
    """Draws of the criterion "random": one score for each layer, then one potential for each of its channels.

    Layers ascend; the generator is `integers.SplitMix64`. A channel's potential is its draw without the
    lowest 8 bits, which a float32 holds exactly.
    """
    rng = SplitMix64(seed)
    scores: dict[int, int] = {}
    layers: dict[int, npt.NDArray[np.float32]] = {}
    for layer in sorted(channels):
        scores[layer] = rng.draw()
        layers[layer] = np.array([rng.draw() >> 8 for _ in range(channels[layer])], np.float32)
    return scores, FisherMap(layers)
