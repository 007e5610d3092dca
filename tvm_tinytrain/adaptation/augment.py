"""Augmentation of the support set into pseudo-queries, as P>M>F does it (Hu et al., CVPR 2022, "DiffAugment").

Colour (brightness, saturation, contrast), translation with zero padding, horizontal flip: Zhao et al., NeurIPS
2020, with P>M>F's probability. One difference: P>M>F decides once for the whole batch whether to augment, here
every image is decided on its own, as a device that sees one sample at a time does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tvm_tinytrain.errors import DTypeError, PlanError, ShapeError
from tvm_tinytrain.values import as_whole, is_number

Images = npt.NDArray[np.float32]
Samples = npt.NDArray[Any]
"""In the dtype of a library's input: float32, or bytes for ``MemoryOptions(input_dtype="uint8")``."""
QuerySource = Callable[[Samples, np.random.Generator], Samples]
"""From support samples [n, …] to as many pseudo-queries of the same classes and dtype; `DiffAugment()` is one."""
_MASK = (1 << 64) - 1


class Draws(Protocol):
    """Where draws come from: a `numpy.random.Generator`, or `DeviceDraws`."""

    def random(self, shape: tuple[int, ...], /) -> npt.NDArray[np.float64]:
        """Numbers in [0, 1)."""


@dataclass
class DeviceDraws:
    """The numbers that ``tt_augment_draw`` makes of a seed (0 … 2⁶⁴-1), one after the other: PCG32 (O'Neill, 2014), 24 bits each.

    ``queries=lambda samples, _: DiffAugment()(samples, draws)`` has the host's `adapt` and `learn` see the images of a device's own
    session with that seed.
    """

    seed: int
    _state: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        hint = "it is the state of a 64-bit generator"
        self.seed = as_whole("augment", "seed", self.seed, 0, hint, _MASK)
        self._state = self.seed

    def random(self, shape: tuple[int, ...], /) -> npt.NDArray[np.float64]:
        """The next numbers in [0, 1), in C order."""
        return np.array([self._next() for _ in range(int(np.prod(shape)))]).reshape(shape)

    def _next(self) -> float:
        old = self._state
        self._state = (old * 6364136223846793005 + 1442695040888963407) & _MASK
        mixed, turn = (((old >> 18) ^ old) >> 27) & 0xFFFFFFFF, old >> 59
        bits = ((mixed >> turn) | (mixed << (-turn & 31))) & 0xFFFFFFFF
        return (bits >> 8) / (1 << 24)


def from_bytes(images: npt.NDArray[np.uint8]) -> Images:
    """Bytes as float32 in [-1, 1]."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_bytes(images: Images) -> npt.NDArray[np.uint8]:
    """Values in [-1, 1] as the nearest bytes; what is outside becomes 0 or 255."""
    return np.rint((images + np.float32(1)) * np.float32(127.5)).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class DiffAugment:
    """How an image is changed. Fields of range 0 switch a change off.

    probability: that an image is changed at all. brightness: added, uniform in ± this. saturation, contrast:
    factors of the distance from the mean over channels, or over the whole image, uniform in 1 ± this.
    translation: shift in both directions, uniform in ± this share of the size, rounded to pixels; what moves in
    is 0. flip: probability of mirroring left and right. The shares are taken as float32, in which a device holds them.

    Images of bytes are changed as if they were in [-1, 1], for which the defaults are made, and rounded to bytes again.
    """

    probability: float = 0.9
    brightness: float = 0.5
    saturation: float = 1.0
    contrast: float = 0.5
    translation: float = 0.125
    flip: float = 0.5

    def __post_init__(self) -> None:
        for name in ("probability", "brightness", "saturation", "contrast", "translation", "flip"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value <= 1.0):
                raise PlanError("augment", name, repr(value), "0 … 1", "the defaults are P>M>F's")

    def __call__(self, images: Samples, rng: Draws) -> Samples:
        """Change images float32 or uint8[n, channels, height, width]; returns a new array. Draws 8 numbers per image."""
        if images.ndim != 4:
            hint = "pass images, or your own source of pseudo-queries"
            raise ShapeError("augment", "images", images.shape, "[n, channels, height, width]", hint)
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            hint = "pass images, or your own source of pseudo-queries"
            raise DTypeError("augment", "images", images.dtype, "float32, uint8", hint)
        draws = rng.random((len(images), 8))
        out = images.copy()
        for i, draw in enumerate(draws):
            if draw[0] < np.float32(self.probability):
                if images.dtype == np.uint8:
                    out[i] = to_bytes(self._change(from_bytes(images[i]), draw))
                else:
                    out[i] = self._change(images[i], draw)
        return out

    def _change(self, image: Images, draw: npt.NDArray[np.float64]) -> Images:
        x = image[:, :, ::-1] if draw[1] < np.float32(self.flip) else image
        x = x + np.float32(self.brightness * (2.0 * draw[2] - 1.0))
        grey = x.mean(axis=0, keepdims=True)
        x = (x - grey) * np.float32(1.0 + self.saturation * (2.0 * draw[3] - 1.0)) + grey
        mean = x.mean()
        x = (x - mean) * np.float32(1.0 + self.contrast * (2.0 * draw[4] - 1.0)) + mean
        return self._shift(x, draw[5], draw[6])

    def _shift(self, x: Images, vertical: float, horizontal: float) -> Images:
        height, width = x.shape[1:]
        share = float(np.float32(self.translation))  # where share · size is a half, the last bits decide
        most = int(height * share + 0.5), int(width * share + 0.5)
        down = int(np.floor(vertical * (2 * most[0] + 1))) - most[0]
        right = int(np.floor(horizontal * (2 * most[1] + 1))) - most[1]
        out = np.zeros_like(x)
        to_y, from_y = _overlap(height, down)
        to_x, from_x = _overlap(width, right)
        out[:, to_y, to_x] = x[:, from_y, from_x]
        return out


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Where the shifted image lies in the result, and which part of the original that is."""
    return slice(max(0, shift), size + min(0, shift)), slice(max(0, -shift), size - max(0, shift))
