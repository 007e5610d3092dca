"""Adam's moments in 16 and 8 bits: what is stored, that small steps are not lost, and what it takes in a library."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tvm

import tvm_tinytrain as tt
from tests.building.adaptive_net import install, program, samples
from tests.native import FAST
from tvm_tinytrain.config import Adam
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.kernels.bias_grad import apply_update
from tvm_tinytrain.passes.kernels.block_update import apply_block_update, words_of
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
    run = tvm.compile(tvm.IRModule({"main": kernel}), FAST)["main"]
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


def unpacked(words: np.ndarray, scales: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Both moments of 8-bit codes, by another route than the kernel's: each block's codes as bytes."""
    codes = words.view(np.uint8).reshape(len(words), -1, 2)[:, :size].astype(np.float64)
    sign, root = np.where(codes[..., 0] >= 128, -1, 1), codes[..., 0] % 128
    return sign * (root / 127) ** 2 * scales[:, :1], (codes[..., 1] / 255) ** 4 * scales[:, 1:]


@pytest.mark.parametrize(
    ("shape", "decay", "decoupled"),
    [
        ((5, 3, 3, 3), 0.0, False),
        ((6, 4), 0.0, False),
        ((3, 1, 1, 1), 0.0, False),
        ((6, 4), 1.0, True),
        ((5, 3, 3, 3), 1.0, False),
    ],
)
@pytest.mark.parametrize("lists", [False, True])
def test_blocks_of_8_bits_follow_the_moments(
    shape: tuple[int, ...], decay: float, decoupled: bool, lists: bool
) -> None:
    chosen = [2, 0] if lists else list(range(shape[0]))
    sink = AdamUpdate(weight_decay=decay, decoupled=decoupled, state="int8")
    kernel = apply_block_update(shape, sink, channels=2 if lists else None).with_attr("global_symbol", "main")
    run = tvm.compile(tvm.IRModule({"main": kernel}), FAST)["main"]
    rng = np.random.default_rng(1)
    rows = (len(chosen), *shape[1:])
    size = int(np.prod(shape[1:]))
    scale = np.exp(1.5 * rng.normal(size=rows))
    start = rng.normal(size=shape).astype(np.float32)
    given = [np.zeros(rows, np.float32), start, np.zeros((len(chosen), words_of(rows)), np.int32)]
    tensors = [tvm.runtime.tensor(a) for a in (*given, np.zeros((len(chosen), 2), np.float32))]
    m, v, weight = np.zeros(rows), np.zeros(rows), start.astype(np.float64)
    for step in range(1, 301):
        g = (rng.normal(size=rows) * scale).astype(np.float32)
        tensors[0].copyfrom(g)
        hyper = np.array([1e-3, 1 - 0.9**step, 1 - 0.999**step, 0.0], np.float32)
        lead = [tensors[0], *([tvm.runtime.tensor(np.array(chosen, np.int32))] if lists else [])]
        run(*lead, *tensors[1:], tvm.runtime.tensor(hyper))
        grad = g.astype(np.float64) + (0.0 if decoupled else decay) * weight[chosen]
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * np.square(grad)
        weight[chosen] *= 1 - 1e-3 * (decay if decoupled else 0.0)
        weight[chosen] -= 1e-3 * (m / hyper[1]) / (np.sqrt(v / hyper[2]) + 1e-8)
    found_m, found_v = unpacked(tensors[2].numpy(), tensors[3].numpy(), size)
    m, v = m.reshape(len(chosen), -1), v.reshape(len(chosen), -1)
    np.testing.assert_allclose(found_m, m, atol=0.05 * np.abs(m).max())
    assert abs(np.mean(np.sqrt(found_v / v)) - 1) < 0.1
    assert not tensors[0].numpy().any()
    moved, wanted = tensors[1].numpy() - start, weight - start
    assert np.abs(moved - wanted).max() < 0.25 * np.abs(wanted).max()
    untouched = [c for c in range(shape[0]) if c not in chosen]
    assert not moved[untouched].any()


def test_steps_stay_bounded_behind_one_large_gradient() -> None:
    """The largest second moment outlives the first one: small ones become small codes, never 0, which a step would divide by."""
    sink, shape, rate = AdamUpdate(state="int8"), (2, 16), 1e-3
    kernel = apply_block_update(shape, sink).with_attr("global_symbol", "main")
    run = tvm.compile(tvm.IRModule({"main": kernel}), FAST)["main"]
    given = [
        np.zeros(shape, np.float32),
        np.zeros(shape, np.float32),
        np.zeros((2, words_of(shape)), np.int32),
    ]
    tensors = [tvm.runtime.tensor(a) for a in (*given, np.zeros((2, 2), np.float32))]
    rng, before, largest = np.random.default_rng(2), given[1], 0.0
    for step in range(1, 121):
        g = (1e-6 * rng.uniform(0.5, 1, shape)).astype(np.float32)
        if step == 1:
            g[:, 0] = 1.0
        tensors[0].copyfrom(g)
        hyper = np.array([rate, 1 - 0.9**step, 1 - 0.999**step, 0.0], np.float32)
        run(*tensors, tvm.runtime.tensor(hyper))
        codes = tensors[2].numpy().view(np.uint8).reshape(2, -1, 2)[..., 1]
        assert codes.min() >= 1, step
        after = tensors[1].numpy()
        largest, before = max(largest, float(np.abs(after - before).max())), after
    assert largest < 3 * rate


CHANNELS = {1: [0, 3, 7], 3: [1, 4]}


@cache
def trained(state: str, adaptive: bool) -> tuple[int, list[float], np.ndarray]:
    """Bytes per trained channel or of the whole state, the losses of some steps, and an output after them."""
    update = tt.TaskAdaptive(candidates=4) if adaptive else tt.UpdatePlan.from_channels(CHANNELS)
    module = tt.build(
        program(), "host", optimizer=Adam(0.01, state=state), update=update, accumulate=True,
    )  # fmt: skip
    tensors = [t for t in module.metadata["tensors"] if t["role"] == "state" and t["name"] != "hyper"]
    kept = sum(t["bytes"] for t in tensors)
    images, losses = samples(4), []
    with InProcess(module, cflags=("-O1",)) as library:
        if adaptive:
            kept = sum(c["channel_bytes"] for c in module.metadata["adaptive"]["candidates"])
            install(library, module, CHANNELS)
        for _ in range(12):
            losses.append(sum(library.step(image, label, "accumulate") for image, label in images))
            library.call("apply")
        return kept, losses, library.predict(images[0][0])


@pytest.mark.host_compiler
@pytest.mark.parametrize("state", ["bfloat16", "int8"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_library_takes_half_the_state_or_less_and_learns_the_same(adaptive: bool, state: str) -> None:
    full, losses, output = trained("float32", adaptive)
    less, other, similar = trained(state, adaptive)
    assert losses[-1] < 0.95 * losses[0]
    np.testing.assert_allclose(other, losses, rtol=0.02)
    np.testing.assert_allclose(similar, output, atol=0.05 * np.abs(output).max())
    assert less < full if adaptive else (2 * less == full if state == "bfloat16" else 2 * less < full)


def test_another_state_is_refused() -> None:
    with pytest.raises(PlanError, match="float32, bfloat16, int8"):
        Adam(state="float16")
