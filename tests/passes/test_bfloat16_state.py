"""Adam's moments in bfloat16: what is stored, that small steps are not lost, and what it takes in a library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm

import tvm_tinytrain as tt
from tests.building.adaptive_net import SHAPE, install, network, samples
from tests.passes.helpers import TARGET
from tvm_tinytrain.config import Adam
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.kernels.bias_grad import apply_update
from tvm_tinytrain.passes.kernels.sinks import AdamUpdate

SIZE, STEPS = 512, 1500


def halves(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both moments of packed words."""
    bits = words.view(np.uint32)
    return (bits & 0xFFFF0000).view(np.float32), (bits << 16).view(np.float32)


def to_nearest(x: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def test_many_small_steps_are_kept_on_average() -> None:
    sink = AdamUpdate(state="bfloat16")
    kernel = apply_update((SIZE,), sink).with_attr("global_symbol", "main")
    run = tvm.compile(tvm.IRModule({"main": kernel}), TARGET)["main"]
    rng = np.random.default_rng(0)
    scale = np.exp(rng.normal(size=SIZE)).astype(np.float32)
    weight, words = np.zeros(SIZE, np.float32), np.zeros(SIZE, np.int32)
    hyper = np.array([1e-3, 1.0, 1.0, 0.0], np.float32)
    tensors = [tvm.runtime.tensor(a) for a in (np.zeros(SIZE, np.float32), weight, words, hyper)]
    exact = np.zeros((2, SIZE))
    nearest = np.zeros(SIZE, np.float32)
    for step in range(STEPS):
        g = (rng.normal(size=SIZE) * scale).astype(np.float32)
        tensors[0].copyfrom(g)
        tensors[3].copyfrom(np.array([1e-3, 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1), 0.0], np.float32))
        run(*tensors)
        exact = np.array([0.9, 0.999])[:, None] * exact + np.array([0.1 * g, 0.001 * np.square(g)])
        nearest = to_nearest(np.float32(0.999) * nearest + np.float32(0.001) * g * g)
    m, v = halves(tensors[2].numpy())
    np.testing.assert_allclose(m, exact[0], atol=0.02 * np.abs(exact[0]).max())
    assert np.abs(v / exact[1] - 1).mean() < 0.1
    assert abs(np.mean(v / exact[1]) - 1) < 0.01
    assert abs(np.mean(nearest / exact[1]) - 1) > 0.1  # why the second moment is not rounded to nearest
    assert not tensors[0].numpy().any()


@pytest.mark.host_compiler
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_library_takes_half_the_state_and_learns_the_same(adaptive: bool) -> None:
    channels = {1: [0, 3, 7], 3: [1, 4]}
    update = tt.TaskAdaptive(candidates=4) if adaptive else tt.UpdatePlan.from_channels(channels)
    images = samples(4)
    found = {}
    for state in ("float32", "bfloat16"):
        module = tt.build(
            network(), "host", example_inputs=(torch.zeros(SHAPE),), optimizer=Adam(0.01, state=state), update=update,
            accumulate=True,
        )  # fmt: skip
        kept = sum(
            t["bytes"] for t in module.metadata["tensors"] if t["role"] == "state" and t["name"] != "hyper"
        )
        if adaptive:
            kept = sum(c["channel_bytes"] for c in module.metadata["adaptive"]["candidates"])
        with InProcess(module) as library:
            if adaptive:
                install(library, module, channels)
            losses = []
            for _ in range(12):
                losses.append(sum(library.step(image, label, "accumulate") for image, label in images))
                library.call("apply")
            found[state] = kept, losses, library.predict(images[0][0])
    (full, losses, output), (half, other, similar) = found["float32"], found["bfloat16"]
    assert losses[-1] < 0.95 * losses[0]
    np.testing.assert_allclose(other, losses, rtol=0.02)
    np.testing.assert_allclose(similar, output, atol=0.05 * np.abs(output).max())
    assert half < full if adaptive else 2 * half == full


def test_another_state_is_refused() -> None:
    with pytest.raises(PlanError, match="float32, bfloat16"):
        Adam(state="float16")
