"""Blocks computed again, from `build` to the library's results: budgets, reports, task-adaptive libraries and their cache."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.building.adaptive_net import install
from tests.compiled import loaded
from tests.passes.networks import seeded
from tests.passes.test_recompute_blocks import Blocks
from tvm_tinytrain.config import MemoryOptions
from tvm_tinytrain.errors import BudgetError, PlanError

pytestmark = pytest.mark.host_compiler
SHAPE = (1, 3, 8, 8)


def build(recompute: str, budget: tt.Budget | None = None, **options: object) -> tt.TrainModule:
    """A library of `Blocks` for the host; Adam."""
    memory = MemoryOptions(recompute=recompute)
    return tt.build(
        seeded(Blocks), "host", example_inputs=(torch.zeros(SHAPE),), optimizer=tt.Adam(0.01), memory=memory,
        budget=budget, **options,  # type: ignore[arg-type]
    )  # fmt: skip


@cache
def built(recompute: str) -> tt.TrainModule:
    """The library without other options."""
    return build(recompute)


def samples(count: int) -> list[tuple[np.ndarray, int]]:
    """Images and labels, always the same."""
    rng = np.random.default_rng(5)
    return [(rng.normal(size=SHAPE).astype(np.float32), i % 3) for i in range(count)]


def test_steps_train_the_same_weights_in_fewer_bytes() -> None:
    plain, twice = built("never"), built("lowest")
    assert twice.arena.arena_bytes < plain.arena.arena_bytes
    told = twice.metadata["memory"]["recomputed"]["step"]
    assert told["macs"] == twice.metadata["macs"]["step"] - plain.metadata["macs"]["step"] > 0
    assert f"{told['segments']} segments are computed again" in twice.report()
    assert "again" not in plain.report()
    with loaded(plain) as one, loaded(twice) as other:
        for image, label in samples(4):
            assert one.step(image, label) == other.step(image, label)
        for tensor in plain.metadata["tensors"]:
            if tensor["role"] in ("param", "state"):
                np.testing.assert_array_equal(one.read(tensor["name"]), other.read(tensor["name"]))


def test_a_budget_decides_how_much_is_computed_again() -> None:
    plain, lowest = built("never"), built("lowest")
    middle = (plain.arena.arena_bytes + lowest.arena.arena_bytes) // 2
    found = {
        memory: build("auto", tt.Budget(memory=memory))
        for memory in (plain.arena.arena_bytes, middle, lowest.arena.arena_bytes)
    }
    extra = [m.metadata["macs"]["step"] - plain.metadata["macs"]["step"] for m in found.values()]
    assert extra[0] == 0 and extra[0] < extra[1] <= extra[2]
    assert all(m.arena.arena_bytes <= memory for memory, m in found.items())
    with pytest.raises(BudgetError, match="live at step"):
        build("auto", tt.Budget(memory=lowest.arena.arena_bytes - 8))
    with pytest.raises(BudgetError, match="live at step"):
        build("never", tt.Budget(memory=middle))


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(PlanError, match="auto, lowest, never"):
        MemoryOptions(recompute="often")


CANDIDATES = tuple(range(1, 10))


@pytest.fixture(scope="module")
def adaptive() -> list[tt.TrainModule]:
    """A task-adaptive library without and with blocks that are computed again."""
    return [build(r, update=tt.TaskAdaptive(candidates=CANDIDATES)) for r in ("never", "lowest")]


@pytest.mark.parametrize("channels", [{2: [1, 3], 7: [0, 5]}, {5: [2], 8: [0, 2, 27]}])
def test_a_task_adaptive_library_measures_and_trains_the_same(
    adaptive: list[tt.TrainModule], channels: dict[int, list[int]]
) -> None:
    plain, twice = adaptive
    assert set(twice.metadata["memory"]["recomputed"]) == {"accumulate", "fisher"}
    assert twice.metadata["adaptive"]["activation_bytes"] < plain.metadata["adaptive"]["activation_bytes"]
    with loaded(plain) as one, loaded(twice) as other, loaded(twice) as cached:
        for library in (one, other):
            library.call("fisher_begin")
            for image, label in samples(3):
                library.step(image, label, "fisher")
        for layer in CANDIDATES:
            np.testing.assert_array_equal(one.read(f"delta_{layer}"), other.read(f"delta_{layer}"))
        for library, module in ((one, plain), (other, twice), (cached, twice)):
            install(library, module, channels)
        for iteration in range(3):
            for slot, (image, label) in enumerate(samples(2)):
                loss = one.step(image, label, "accumulate")
                assert other.step(image, label, "accumulate") == loss
                cached.write("slot", np.array([slot], np.int32))
                assert (
                    cached.step(image, label, "accumulate_store" if iteration == 0 else "accumulate_cached")
                    == loss
                )
            for library in (one, other, cached):
                library.call("apply")
        image = samples(2)[1][0]
        np.testing.assert_array_equal(other.predict(image), one.predict(image))
        np.testing.assert_array_equal(cached.predict(image), one.predict(image))
        cached.call("predict_cached")
        np.testing.assert_array_equal(cached.read("output"), one.predict(image))
