"""The shape of a two-dimensional convolution: everything a kernel, a gradient or a cost model needs to know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conv2DSpec:
    """A convolution of one sample: x[1, in_channels, height, width] → y[1, out_channels, out_height, out_width].

    ``kernel``, ``stride`` and ``dilation`` are (vertical, horizontal); ``padding`` is (top, left, bottom, right) in elements.
    The weight has shape [out_channels, in_channels // groups, kernel[0], kernel[1]].
    """

    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @staticmethod
    def from_dict(values: dict[str, object]) -> Conv2DSpec:
        """Inverse of ``dataclasses.asdict`` after a JSON round trip; keys of other meaning are ignored."""
        names = (
            "in_channels",
            "height",
            "width",
            "out_channels",
            "kernel",
            "stride",
            "padding",
            "dilation",
            "groups",
        )
        return Conv2DSpec(**{k: tuple(v) if isinstance(v := values[k], list) else v for k in names})  # type: ignore[arg-type]

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        reach = self.dilation[0] * (self.kernel[0] - 1) + 1
        return (self.height + self.padding[0] + self.padding[2] - reach) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        reach = self.dilation[1] * (self.kernel[1] - 1) + 1
        return (self.width + self.padding[1] + self.padding[3] - reach) // self.stride[1] + 1

    @property
    def padded_height(self) -> int:
        """Rows of the input with its padding."""
        return self.height + self.padding[0] + self.padding[2]

    @property
    def padded_width(self) -> int:
        """Columns of the input with its padding."""
        return self.width + self.padding[1] + self.padding[3]

    @property
    def group_inputs(self) -> int:
        """Input channels that one output channel reads."""
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def depthwise(self) -> bool:
        """One input and one output channel per group."""
        return self.groups == self.in_channels == self.out_channels and self.groups > 1

    @property
    def pointwise(self) -> bool:
        """A 1×1 convolution of stride one: each output pixel comes from the input pixel in its place."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.groups == 1 and not self.padded

    @property
    def padded(self) -> bool:
        """Whether any padding is asked for."""
        return any(self.padding)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """[out_channels, in_channels // groups, kh, kw]."""
        return (self.out_channels, self.group_inputs, *self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward pass, padding included (as the kernels execute them)."""
        taps = self.group_inputs * self.kernel[0] * self.kernel[1]
        return self.out_channels * self.out_height * self.out_width * taps

    @property
    def input_grad_macs(self) -> int:
        """Multiply-accumulates of the input's gradient: gathered for stride 1, scattered (as many as forward) for larger strides."""
        if self.stride != (1, 1):
            return self.macs
        return (
            self.in_channels * self.height * self.width * self.group_outputs * self.kernel[0] * self.kernel[1]
        )

    @property
    def taps_inside(self) -> int:
        """Pairs of an output pixel and a tap whose input pixel exists: what is left of the taps without those in the padding."""
        return self._inside(0) * self._inside(1)

    def _inside(self, axis: int) -> int:
        size, out = (self.height, self.out_height) if axis == 0 else (self.width, self.out_width)
        before, stride, dilation = self.padding[axis], self.stride[axis], self.dilation[axis]
        places = (i * stride + k * dilation - before for i in range(out) for k in range(self.kernel[axis]))
        return sum(0 <= place < size for place in places)

    @property
    def scatters(self) -> bool:
        """Stride and dilation on one axis: the taps that reach an input element do not follow each other."""
        return any(s > 1 and d > 1 for s, d in zip(self.stride, self.dilation, strict=True))

    @property
    def executed_macs(self) -> int:
        """Multiply-accumulates that the forward kernel executes: a depthwise one of stride one goes over the padding, others do not."""
        if self.depthwise and self.stride == (1, 1):
            return self.macs
        return self.out_channels * self.group_inputs * self.taps_inside

    @property
    def executed_input_grad_macs(self) -> int:
        """As `executed_macs`, of the input's gradient; stride and dilation together scatter, over the padding too."""
        if self.scatters or (self.depthwise and self.stride == (1, 1)):
            return self.input_grad_macs
        return self.out_channels * self.group_inputs * self.taps_inside
