"""The shape of blocks that stream: convolutions of whose tensors only some rows exist at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec


@dataclass(frozen=True)
class Stage:
    """One convolution, with bias if ``bias`` and clamped to [low, high]."""

    conv: Conv2DSpec
    bias: bool
    low: float | None
    high: float | None

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Stage:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip."""
        return Stage(Conv2DSpec.from_dict(values["conv"]), values["bias"], values["low"], values["high"])


@dataclass(frozen=True)
class Link:
    """``first`` (dense, k×k; None: the input itself) → ``depthwise`` → ``project`` (1×1): one block of a chain.

    ``tile_*`` are register tiles, (channels, pixels), each a divisor of its extent, which a schedule rule chooses; ``lanes`` pixels
    are a vector where they divide the tile.
    """

    first: Stage | None
    depthwise: Stage
    project: Stage
    tile_first: tuple[int, int] = (1, 1)
    tile_depthwise: int = 1
    tile_project: tuple[int, int] = (1, 1)
    lanes: int = 1

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Link:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip."""
        first = None if values["first"] is None else Stage.from_dict(values["first"])
        depthwise, project = Stage.from_dict(values["depthwise"]), Stage.from_dict(values["project"])
        tile_first, tile_project = (tuple(values[k]) for k in ("tile_first", "tile_project"))
        return Link(
            first, depthwise, project, tile_first, values["tile_depthwise"], tile_project, values["lanes"]
        )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The convolutions in order."""
        return tuple(s for s in (self.first, self.depthwise, self.project) if s is not None)

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
    def line_shape(self) -> tuple[int, int]:
        """[channels, columns] of one row of the block's input."""
        conv = self.stages[0].conv
        return (conv.in_channels, conv.width)


@dataclass(frozen=True)
class StreamSpec:
    """Blocks one after the other; each row goes through all of them before the next one is computed.

    ``residual`` adds the chain's input to the result of its first block; ``inplace`` (one block only) writes the result over the
    input. With ``input_dtype`` uint8 the first stage reads x · ``scale`` + ``offset``.
    """

    links: tuple[Link, ...]
    residual: bool = False
    inplace: bool = False
    input_dtype: str = "float32"
    scale: float = 1.0
    offset: float = 0.0

    @staticmethod
    def from_dict(values: dict[str, Any]) -> StreamSpec:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip; other keys are ignored."""
        rest = [values[k] for k in ("residual", "inplace", "input_dtype", "scale", "offset")]
        return StreamSpec(tuple(Link.from_dict(v) for v in values["links"]), *rest)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All convolutions in order."""
        return tuple(s for link in self.links for s in link.stages)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """[1, channels, height, width] of the input."""
        conv = self.stages[0].conv
        return (1, conv.in_channels, conv.height, conv.width)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """[1, channels, height, width] of the result."""
        conv = self.stages[-1].conv
        return (1, conv.out_channels, conv.out_height, conv.out_width)

    @property
    def direct(self) -> bool:
        """Whether the first stage reads x itself: 1×1, float32. Otherwise it reads a padded copy of the rows it needs."""
        first = self.links[0].first
        return first is not None and first.conv.pointwise and self.input_dtype == "float32"

    @property
    def patch_shape(self) -> tuple[int, int, int] | None:
        """[channels, rows, columns] of the padded copy of input rows; None where there is none."""
        first = self.links[0].first
        if first is None or self.direct:
            return None
        return (first.conv.in_channels, first.conv.kernel[0], first.conv.padded_width)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of all rows that the kernel keeps."""
        shapes: list[tuple[int, ...]] = [s for link in self.links for s in (link.ring_shape, link.row_shape)]
        shapes += [link.line_shape for link in self.links[1:]]
        shapes += [self.patch_shape] if self.patch_shape is not None else []
        return sum((4 * math.prod(s) + 7) // 8 * 8 for s in shapes)

    @property
    def macs(self) -> int:
        """Multiply-accumulates: those of the convolutions one after the other."""
        return sum(s.conv.macs for s in self.stages)

    @property
    def rows(self) -> int:
        """Rows that enter the first ring, rows of padding included: as many as the last row of the result asks for."""
        needed = self.y_shape[2]
        for index in range(len(self.links) - 1, -1, -1):
            conv = self.links[index].depthwise.conv
            needed = (needed - 1) * conv.stride[0] + conv.kernel[0] - (conv.padding[0] if index else 0)
        return needed
