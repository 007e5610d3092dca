"""StreamBlocks and NormaliseInput: what streams, what it costs, and that the results are the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import tvm
from torch import nn

from tests.passes.helpers import Machine, lowered
from tests.passes.networks import sample, seeded
from tvm_tinytrain.models.blocks import Backbone, BackboneSpec, BlockSpec, chain_blocks
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.liveness import live_bytes
from tvm_tinytrain.passes.normalise_input import NormaliseInput
from tvm_tinytrain.passes.rewriting import bindings, callee
from tvm_tinytrain.passes.stream_blocks import StreamBlocks, find_blocks
from tvm_tinytrain.schedules import RULES, ScheduleKernels

TARGET = tvm.target.Target({"kind": "c"})


class Bottleneck(nn.Module):
    """Expand, depthwise, project; a skip connection where the shape allows it."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, padding: int | None = None
    ) -> None:
        super().__init__()
        pad = kernel // 2 if padding is None else padding
        self.expand = nn.Conv2d(inputs, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, kernel, stride, pad, groups=hidden, bias=stride == 1)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.skips = stride == 1 and inputs == outputs and pad == kernel // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu6(self.expand(x))
        y = self.project(nn.functional.relu(self.depthwise(y)))
        return x + y if self.skips else y


class Behind(nn.Module):
    """A block behind another operator, so that its input is a tensor that may die in it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.block(torch.exp(x)))


def kinds(mod: tvm.IRModule, name: str = "predict") -> list[str]:
    """Kernel kinds in the order of their calls."""
    found = [callee(b.value) for b in bindings(mod[name])]
    return [str(kernel_kind(mod[gv])) for gv in found if gv is not None]


def streamed_spec(mod: tvm.IRModule) -> dict[str, object]:
    """The parameters of the module's only streaming kernel."""
    (spec,) = [kernel_spec(f) for f in mod.functions.values() if kernel_kind(f) == "streamed_block"]
    return spec


def outputs(mod: tvm.IRModule, x: np.ndarray, *, scheduled: bool) -> np.ndarray:
    """What ``predict`` computes, optionally with tiles in the streaming kernels."""
    mod = ScheduleKernels(TARGET, RULES[:1])(mod) if scheduled else mod
    return Machine(mod).run("predict", x)[0]


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize(
    ("inputs", "hidden", "out", "kernel", "stride", "padding", "height", "width"),
    [
        (4, 12, 4, 3, 1, None, 7, 6),
        (4, 12, 6, 3, 1, None, 5, 9),
        (3, 8, 5, 5, 2, None, 21, 8),
        (3, 8, 5, 7, 2, None, 30, 11),
        (4, 6, 4, 3, 2, 0, 8, 7),
        (4, 6, 3, 5, 1, 1, 18, 7),
        (4, 6, 4, 7, 1, None, 17, 4),
        (4, 6, 4, 2, 2, 0, 6, 6),
    ],
)
def test_a_block_gives_what_its_convolutions_give(
    inputs: int, hidden: int, out: int, kernel: int, stride: int, padding: int | None, height: int, width: int, scheduled: bool
) -> None:  # fmt: skip
    net = seeded(lambda: Behind(Bottleneck(inputs, hidden, out, kernel, stride, padding)))
    x = sample(inputs, height, width)
    mod = lowered(net, x)
    after = StreamBlocks()(mod)
    tvm.relax.analysis.well_formed(after)
    assert kinds(after).count("streamed_block") == 1
    np.testing.assert_array_equal(
        outputs(after, x.numpy(), scheduled=scheduled), outputs(mod, x.numpy(), scheduled=False)
    )


def test_multiply_accumulates_stay_and_bytes_go() -> None:
    net, x = seeded(lambda: Behind(Bottleneck(4, 24, 4, 3, 1))), sample(4, 16, 16)
    mod = lowered(net, x)
    after = StreamBlocks()(mod)
    plain = [kernel_spec(f) for f in mod.functions.values() if kernel_kind(f) == "conv2d"]
    assert streamed_spec(after)["macs"] == sum(s["macs"] for s in plain)
    assert max(live_bytes(after["predict"])) < max(live_bytes(mod["predict"])) / 4
    assert streamed_spec(after)["inplace"] and streamed_spec(after)["residual"]


def test_a_block_whose_input_is_read_elsewhere_does_not_overwrite_it() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Bottleneck(4, 24, 4, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.exp(x)
            return self.block(y) * y

    net, x = seeded(Fork), sample(4, 8, 8)
    mod = lowered(net, x)
    after = StreamBlocks()(mod)
    assert not streamed_spec(after)["inplace"]
    np.testing.assert_array_equal(
        outputs(after, x.numpy(), scheduled=True), outputs(mod, x.numpy(), scheduled=False)
    )


def test_a_block_away_from_the_peak_stays() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Conv2d(3, 64, 3, groups=1)
            self.narrow = nn.Conv2d(64, 4, 3, stride=4)
            self.block = Bottleneck(4, 8, 4, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.narrow(self.wide(x)))

    mod = lowered(seeded(Late), sample(3, 17, 17))
    assert len(find_blocks(mod, "predict")) == 1
    assert "streamed_block" not in kinds(StreamBlocks()(mod))


def test_an_inner_tensor_that_something_else_reads_ends_the_chain() -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Bottleneck(4, 8, 4, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.block.expand(x)
            z = self.block.depthwise(y)
            return self.block.project(z) + z.mean() + y.mean()

    assert not find_blocks(lowered(seeded(Leaky), sample(4, 6, 6)), "predict")


TINY = BackboneSpec(
    "tiny", 16, chain_blocks(BlockSpec(16, 16, 8, 3, 1), ((24, 8, 3, 2), (24, 8, 5, 1), (24, 12, 7, 2))), None
)


@pytest.mark.parametrize("size", [37, 48])
@pytest.mark.parametrize("scheduled", [False, True])
def test_the_stem_streams_into_the_blocks_behind_it_from_bytes(size: int, scheduled: bool) -> None:
    net = seeded(lambda: Backbone(TINY, num_classes=3, fused=True))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, size, size)).astype(np.uint8)
    x = image.astype(np.float32) * np.float32(0.25) + np.float32(-2.0)
    mod = lowered(net, torch.from_numpy(x))
    after = StreamBlocks()(NormaliseInput(0.25, -2.0)(mod))
    tvm.relax.analysis.well_formed(after)
    assert str(after["predict"].params[0].ty.dtype) == "uint8"
    assert kinds(after)[0] == "streamed_block" and "normalise" not in kinds(after)
    first = next(kernel_spec(f) for f in after.functions.values() if kernel_kind(f) == "streamed_block")
    assert len(json.loads(json.dumps(first))["links"]) > 1
    np.testing.assert_array_equal(
        outputs(after, image, scheduled=scheduled), outputs(mod, x, scheduled=False)
    )


def test_bytes_are_normalised_in_front_of_any_other_reader() -> None:
    net, image = (
        seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())),
        np.full((1, 3, 5, 5), 7, np.uint8),
    )
    x = image.astype(np.float32) * np.float32(0.5) + np.float32(1.0)
    mod = lowered(net, torch.from_numpy(x))
    after = NormaliseInput(0.5, 1.0)(mod)
    np.testing.assert_array_equal(outputs(after, image, scheduled=False), outputs(mod, x, scheduled=False))
