"""The integer arithmetic of selection, specified to the bit so that a device's C gives the host's answer.

No floating-point operation, logarithm or unstable sort takes part in a decision. A C implementation needs
uint32, uint64 and one 64×64→128-bit product (four 32×32→64 products where there is no 128-bit type).

Quantised potential
    Fisher potentials arrive as IEEE-754 binary32 values ≥ 0. Let ``bits(x)`` be the 32 bits of x, ``e =
    bits >> 23`` (the sign bit is 0), ``mant = e ? (bits & 0x7fffff) | 0x800000 : bits & 0x7fffff``, ``e =
    max(e, 1)``. E is the largest e over all channels of all candidate layers. Then ::

        shift = E - e
        q = shift <= 8 ? mant << (8 - shift) : shift - 8 < 32 ? mant >> (shift - 8) : 0        (uint32)

    which is the potential in units of 2^-32 of the next power of two above the maximum, rounded down;
    values within a factor 2^8 of the maximum are exact. -0.0 counts as 0. Negative values, infinities and
    NaN are refused.

Ratio
    num/den with uint64 num and den > 0. a/b > c/d is decided by a·d > c·b in 128 bits: exact, and no
    division.

Random numbers
    splitmix64 (Steele, Lea, Flood 2014): ``s += 0x9e3779b97f4a7c15; z = s; z = (z ^ z >> 30) *
    0xbf58476d1ce4e5b9; z = (z ^ z >> 27) * 0x94d049bb133111eb; z ^= z >> 31`` modulo 2^64; a draw is the
    upper 32 bits of z.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.errors import PlanError

_MASK64 = (1 << 64) - 1
_INFINITE = 0xFF


def quantise(potentials: Mapping[int, npt.NDArray[np.float32]]) -> dict[int, npt.NDArray[np.uint32]]:
    """Quantise potentials as the module's text says: {layer: float32[channels]} → {layer: uint32[channels]}.

    Raises PlanError for negative, infinite or undefined values.
    """
    split = {layer: _mantissa_and_exponent(layer, values) for layer, values in potentials.items()}
    largest = max((int(exponent.max(initial=1)) for _, exponent in split.values()), default=1)
    out = {}
    for layer, (mantissa, exponent) in split.items():
        shift = largest - exponent
        up, down = np.clip(8 - shift, 0, 8), np.clip(shift - 8, 0, 32)
        out[layer] = ((mantissa << up) >> down).astype(np.uint32)
    return out


def _mantissa_and_exponent(
    layer: int, values: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.int64)
    bits[bits == 1 << 31] = 0
    exponent = bits >> 23
    if (exponent >= _INFINITE).any():
        worst = values[int(np.argmax(exponent >= _INFINITE))]
        raise PlanError(
            "selection",
            f"potentials of layer {layer}",
            f"{worst}",
            "finite values of at least 0",
            "check the network for overflow, and that the potentials are sums of squares",
        )
    fraction = bits & 0x7FFFFF
    mantissa = np.where(exponent > 0, fraction | 0x800000, fraction)
    return mantissa, np.maximum(exponent, 1)


class SplitMix64:
    """The generator of the module's text; the same seed gives the same draws everywhere."""

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK64

    def draw(self) -> int:
        """Return the next number, uniform in [0, 2^32)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK64
        z = self._state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK64
        return (z ^ z >> 31) >> 32
