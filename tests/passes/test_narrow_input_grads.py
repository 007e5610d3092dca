"""Input gradients for listed channels: which ones the pass makes, and that they give the bits of the whole kernel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tvm_tinytrain as tt
from tests.building.adaptive_net import SHAPE, install, samples
from tests.compiled import loaded
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.kernels.builder import Arg, make_kernel
from tvm_tinytrain.passes.narrow_input_grads import keeps_elements_apart


class Chain(nn.Module):
    """1×1 → depthwise 3×3/2 → 1×1 with a skip around two more 1×1, each with a clamp but the last ones of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, 2, 1, groups=12)
        self.project = nn.Conv2d(12, 6, 1)
        self.wide = nn.Conv2d(6, 10, 1)
        self.narrow = nn.Conv2d(10, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [1, 4]."""
        y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x))))
        y = self.project(y)
        y = y + self.narrow(nn.functional.relu6(self.wide(y)))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def module() -> tt.TrainModule:
    torch.manual_seed(1)
    example = (torch.zeros(SHAPE),)
    return tt.build(
        Chain().eval(),
        "host",
        example_inputs=example,
        update=tt.TaskAdaptive(candidates=6),
        budget=tt.Budget(memory=80000),
    )


def listed_calls(module: tt.TrainModule) -> list[str]:
    """Conditions of the calls for listed channels, in order."""
    lines = module.files["tt_model.c"].decode().splitlines()
    return [
        condition.strip().replace("plan[TT_PLAN_DEPTH]", "earliest")
        for condition, call in itertools.pairwise(lines)
        if "input_grad_listed" in call
    ]


@pytest.mark.host_compiler
def test_every_adjoint_in_front_of_a_convolution_has_a_listed_form(module: tt.TrainModule) -> None:
    """The fifth layer feeds the mean, the head the loss. A depthwise layer hands its channels on to the one in front."""
    assert listed_calls(module) == [
        "if (earliest == 3)",
        "if (earliest == 2)",
        "if (earliest == 0)",
        "if (rows[1] != 0 && (earliest == 0 || earliest == 1))",
        "if (earliest == 0)",
    ]


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    "channels",
    [{1: [2, 9], 2: [1]}, {2: [0, 4], 3: [5], 5: [1]}, {3: [0, 3, 9], 4: [2]}],
)
def test_gradients_are_those_of_the_whole_kernel(
    module: tt.TrainModule, channels: dict[int, list[int]]
) -> None:
    """The same plan with the first candidate trained too (no channel of it counts) runs the whole kernels."""
    lowest = min(channels)
    with loaded(module) as listed, loaded(module) as whole:
        install(listed, module, channels)
        install(whole, module, channels | {lowest - 1: [0]})
        for image, label in samples(3):
            for library in (listed, whole):
                library.step(image, min(label, 3), "accumulate")
        assert gradients(listed, module, set(channels)) == gradients(whole, module, set(channels))


def gradients(library: InProcess, module: tt.TrainModule, layers: set[int]) -> dict[str, bytes]:
    """Accumulated gradients of some layers, by tensor."""
    block = module.metadata["adaptive"]
    plan = library.read("plan")
    words = block["plan_words"]
    found = {}
    for index, row in enumerate(block["rows"]):
        layer = block["candidates"][row["candidate"]]["layer"]
        if row["name"].startswith("g_") and layer in layers:
            count = plan[words["rows"] + row["candidate"]] * row["row_bytes"]
            start = plan[words["offsets"] + index]
            values = library.arena[start : start + count].tobytes()
            found[row["name"]] = values
    assert any(np.frombuffer(v, np.float32).any() for v in found.values())
    return found


def test_a_kernel_that_mixes_elements_is_told_from_one_that_does_not() -> None:
    from tvm.tirx.script import builder as T

    def made(place: int) -> object:
        def body(x: object, y: object) -> None:
            with T.grid(2, 3) as (i, j), T.sblock("copy"):
                vi, vj = T.axis.remap("SS", [i, j])
                T.buffer_store(y, x[vi, (vj + place) % 3], [vi * 3 + vj])

        return make_kernel("copy", {}, [Arg("x", (2, 3)), Arg("y", (6,), role="out")], body, macs=0)

    assert keeps_elements_apart(made(0), 0)
    assert not keeps_elements_apart(made(1), 0)
