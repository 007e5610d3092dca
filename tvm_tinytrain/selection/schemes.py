"""SparseUpdate's schemes as data: which layers MIT's offline search found worth training, for three
backbones.

Source: Lin et al., "On-Device Training Under 256KB Memory", NeurIPS 2022; the numbers stand in the
configuration of its compiler (mit-han-lab/tiny-training, compilation/mcu_ir_gen.py). Layers count
convolutions from the stem = 0. The names give the extra SRAM of the int8 engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class SparseScheme:
    """weights: {layer: share of its *input* channels whose weights are trained}, of a depthwise layer: of
    its channels.

    biases: number of last convolutions whose bias is trained. layers: convolutions of the backbone it was
    made for, the final 1×1 not counted.
    """

    weights: Mapping[int, Fraction]
    biases: int
    layers: int


def _scheme(layers: int, biases: int, indices: str, shares: str) -> SparseScheme:
    pairs = zip(indices.split(), shares.split(), strict=True)
    return SparseScheme({int(i): Fraction(s) for i, s in pairs if Fraction(s)}, biases, layers)


SCHEMES: Mapping[str, SparseScheme] = {
    "mbv2-49kb": _scheme(51, 16, "36 39 40 41 42 45 48 49", "1 1 0 1/4 1/8 1/8 1/8 1/8"),
    "mbv2-73kb": _scheme(51, 20, "32 33 36 39 41 42 45 48", "1/8 1/2 1/2 1 1/4 1/8 1/8 1"),
    "mbv2-99kb": _scheme(51, 25, "27 30 33 36 39 42 45 48", "1 1 1 1 1 1/8 1/2 1"),
    "mbv2-123kb": _scheme(51, 31, "27 30 33 36 39 42 45 48", "1 1 1 1 1 1/2 1 1"),
    "mbv2-138kb": _scheme(51, 34, "27 30 33 36 39 42 45 48", "1 1 1 1 1 1 1 1"),
    "mcunet-49kb": _scheme(42, 20, "23 24 27 30 33 39", "0 1/4 1/2 1/2 0 0"),
    "mcunet-74kb": _scheme(42, 21, "21 23 24 26 27 30", "1 0 1 0 1/2 1"),
    "mcunet-99kb": _scheme(42, 22, "21 24 27 30 36 39", "1 1 1 1 1/8 1/4"),
    "mcunet-124kb": _scheme(42, 24, "21 24 27 30 33 39", "1/4 1 1 1 1/2 1/2"),
    "mcunet-148kb": _scheme(42, 23, "21 24 27 30 36 39", "1 1 1 1 1 1/2"),
    "proxyless-49kb": _scheme(60, 21, "39 42 44 45 50 51 54 57", "1/4 1 0 1 0 1/8 1/4 1/4"),
    "proxyless-74kb": _scheme(60, 28, "33 36 39 42 45 51 54 57", "1/2 1/4 1 1 1 1/2 1/4 1/2"),
    "proxyless-98kb": _scheme(60, 25, "36 39 42 45 48 51 54 57", "1 1/2 1 1 1/4 1/2 1 1"),
    "proxyless-120kb": _scheme(60, 32, "36 39 42 45 48 51 54 57", "1 1 1 1 1/2 1 1 1"),
    "proxyless-148kb": _scheme(60, 45, "36 39 42 45 48 51 54 57", "1 1 1 1 1 1 1 1"),
}
"""All schemes by name. "mcunet-99kb" is the SparseUpdate of TinyTrain's tables (there also called 100 KB)."""
