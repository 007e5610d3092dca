"""The shape of a block that streams: up to three convolutions of which only some rows exist at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec

Clamp = tuple[float | None, float | None]


@dataclass(frozen=True)
class Stage:
    """One convolution of the block, with bias if ``bias`` and clamped to [low, high]."""

    conv: Conv2DSpec
    bias: bool
    low: float | None
    high: float | None

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Stage:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip."""
        return Stage(Conv2DSpec.from_dict(values["conv"]), values["bias"], values["low"], values["high"])


@dataclass(frozen=True)
class StreamSpec:
    """``first`` (dense, k×k; None: x itself) → ``depthwise`` → ``project`` (1×1) [+ x].

    ``residual`` adds the block's input, ``inplace`` writes the result over it. With ``input_dtype`` uint8 the first stage reads
    x · ``scale`` + ``offset``. ``tile_*`` are register tiles, (channels, pixels), each a divisor, which a schedule rule chooses.
    """

    first: Stage | None
    depthwise: Stage
    project: Stage
    residual: bool = False
    inplace: bool = False
    input_dtype: Literal["float32", "uint8"] = "float32"
    scale: float = 1.0
    offset: float = 0.0
    tile_first: tuple[int, int] = (1, 1)
    tile_depthwise: int = 1
    tile_project: tuple[int, int] = (1, 1)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> StreamSpec:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip; other keys are ignored."""
        first = values["first"]
        return StreamSpec(
            None if first is None else Stage.from_dict(first),
            Stage.from_dict(values["depthwise"]),
            Stage.from_dict(values["project"]),
            values["residual"],
            values["inplace"],
            values["input_dtype"],
            values["scale"],
            values["offset"],
            tuple(values["tile_first"]),
            values["tile_depthwise"],
            tuple(values["tile_project"]),
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The convolutions in order."""
        return tuple(s for s in (self.first, self.depthwise, self.project) if s is not None)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """[1, channels, height, width] of the input."""
        conv = self.stages[0].conv
        return (1, conv.in_channels, conv.height, conv.width)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """[1, channels, height, width] of the result."""
        conv = self.project.conv
        return (1, conv.out_channels, conv.out_height, conv.out_width)

    @property
    def direct(self) -> bool:
        """Whether the first stage reads x itself: 1×1, float32. Otherwise it reads a padded copy of the rows it needs."""
        return self.first is not None and self.first.conv.pointwise and self.input_dtype == "float32"

    @property
    def ring_shape(self) -> tuple[int, int, int]:
        """[channels, rows, columns] of the rows that the depthwise window still needs, with their padding."""
        conv = self.depthwise.conv
        return (conv.in_channels, conv.kernel[0], conv.padded_width)

    @property
    def row_shape(self) -> tuple[int, int]:
        """[channels, columns] of one row of the depthwise convolution's result."""
        return (self.depthwise.conv.out_channels, self.depthwise.conv.out_width)

    @property
    def patch_shape(self) -> tuple[int, int, int] | None:
        """[channels, rows, columns] of the padded copy of input rows; None where there is none."""
        if self.first is None or self.direct:
            return None
        conv = self.first.conv
        return (conv.in_channels, conv.kernel[0], conv.padded_width)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all rows that the kernel keeps."""
        total = 0
        for shape in (self.ring_shape, self.row_shape, self.patch_shape):
            size = 4 if shape is not None else 0
            for extent in shape or ():
                size *= extent
            total += (size + 7) // 8 * 8
        return total

    @property
    def macs(self) -> int:
        """Multiply-accumulates: those of the convolutions one after the other."""
        return sum(s.conv.macs for s in self.stages)

    @property
    def rows(self) -> int:
        """Rows that pass through the ring, the zero rows of the padding included."""
        conv = self.depthwise.conv
        return (conv.out_height - 1) * conv.stride[0] + conv.kernel[0]
