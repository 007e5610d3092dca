"""Plain descriptions of a network's trainable layers: what the cost model reads, free of TVM and torch.

A description comes from a compiled module (`LayerSpec.from_kernel`, with the specs of its forward kernels),
or from the structure of an inverted-bottleneck backbone (`inverted_bottlenecks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tvm_tinytrain.errors import ShapeError


@dataclass(frozen=True)
class LayerSpec:
    """Shapes of one convolution or linear layer for one sample.

    id: position in the order of execution, from 0 without gaps. kind: "conv2d" or "linear".
    in_shape, out_shape: (channels, height, width); a linear layer over rows[r, f] is (f, r, 1).
    kernel, stride: (vertical, horizontal). groups divides both channel counts.
    bias: whether a bias of out_shape[0] values is trained with the weight. activation: whether a ReLU or a
    clamp follows, so that the backward pass needs one bit for each output. block: index of the building
    block, or None. skip: id of the layer whose *input* is added to this layer's output (a residual), or
    None. sources: ids of the layers whose outputs reach this layer's input without passing another layer;
    None stands for the layer before. They decide which input gradients a trained layer asks for.
    padding: zeros (above, left of) the input; dilation: (vertical, horizontal). Only `compiled` reads them.
    """

    id: int
    kind: str
    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    activation: bool = False
    block: int | None = None
    skip: int | None = None
    sources: tuple[int, ...] | None = None
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        thing = f"layer {self.id}"
        sizes = (*self.in_shape, *self.out_shape, *self.kernel, *self.stride, self.groups)
        if any(size < 1 for size in sizes):
            raise ShapeError(
                "cost model", thing, f"{sizes}", "sizes of at least 1", "describe a static shape"
            )
        if self.in_shape[0] % self.groups or self.out_shape[0] % self.groups:
            found = f"{self.in_shape[0]} → {self.out_shape[0]} channels in {self.groups} groups"
            raise ShapeError("cost model", thing, found, "channels divisible by groups", "check the groups")

    @staticmethod
    def from_kernel(
        layer: int, kind: str, spec: Mapping[str, Any], *, bias: bool, activation: bool, **graph: Any
    ) -> LayerSpec:
        """Describe a layer by the spec of its forward kernel (the fields of Conv2DSpec or LinearSpec as a
        mapping).

        graph: `block`, `skip` and `sources`, where they are known. Raises ShapeError for another kind.
        """
        if kind == "linear":
            rows = spec["rows"]
            before, after = (spec["in_features"], rows, 1), (spec["out_features"], rows, 1)
            return LayerSpec(layer, kind, before, after, bias=bias, activation=activation, **graph)
        if kind != "conv2d":
            raise ShapeError("cost model", f"layer {layer}", repr(kind), "conv2d or linear", "leave it out")
        kernel, stride = tuple(spec["kernel"]), tuple(spec["stride"])
        top, left, bottom, right = spec["padding"]
        padded = (spec["height"] + top + bottom, spec["width"] + left + right)
        reach = [d * (k - 1) + 1 for d, k in zip(spec["dilation"], kernel, strict=True)]
        height, width = ((p - r) // s + 1 for p, r, s in zip(padded, reach, stride, strict=True))
        return LayerSpec(
            layer,
            kind,
            (spec["in_channels"], spec["height"], spec["width"]),
            (spec["out_channels"], height, width),
            (kernel[0], kernel[1]),
            (stride[0], stride[1]),
            spec["groups"],
            bias,
            activation,
            padding=(top, left),
            dilation=tuple(spec["dilation"]),
            **graph,
        )


class Bottleneck(Protocol):
    """One inverted bottleneck, as tvm_tinytrain.models.BlockSpec describes it."""

    @property
    def in_channels(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def kernel(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def skips(self) -> bool: ...


def inverted_bottlenecks(
    stem_channels: int, blocks: Iterable[Bottleneck], mix_channels: int | None = None, *, size: int = 128
) -> tuple[LayerSpec, ...]:
    """Layers of stem 3×3/2 → blocks (expand 1×1, depthwise k×k, project 1×1) → feature mix 1×1, for a
    3×size×size image.

    Padding is k // 2. A block without expansion (hidden equals in_channels) has two layers. Expand,
    depthwise, stem and mix are followed by an activation. The feature mix counts as a block of its own.
    """
    layers: list[LayerSpec] = []
    shape = (3, size, size)

    def add(channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, **more: Any) -> None:
        nonlocal shape
        pad = 2 * (kernel // 2)
        height, width = ((side + pad - kernel) // stride + 1 for side in shape[1:])
        out = (channels, height, width)
        square: dict[str, Any] = {
            "kernel": (kernel,) * 2,
            "stride": (stride,) * 2,
            "padding": (kernel // 2,) * 2,
        }
        spec = LayerSpec(len(layers), "conv2d", shape, out, groups=groups, **square, **more)
        layers.append(spec)
        shape = out

    add(stem_channels, 3, 2, activation=True)
    index = -1
    for index, block in enumerate(blocks):
        first = len(layers)
        if block.hidden != block.in_channels:
            add(block.hidden, activation=True, block=index)
        add(block.hidden, block.kernel, block.stride, block.hidden, activation=True, block=index)
        add(block.out_channels, block=index, skip=first if block.skips else None)
    if mix_channels is not None:
        add(mix_channels, activation=True, block=index + 1)
    return tuple(layers)
