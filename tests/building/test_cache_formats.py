"""The frozen prefix's cache as float16 and int8: what it keeps, what that changes, and what it costs in bytes."""

from __future__ import annotations

import numpy as np
import pytest

import tvm_tinytrain as tt
from tests.building.adaptive_net import build, install, samples
from tests.compiled import loaded
from tvm_tinytrain.errors import PlanError, TransportError
from tvm_tinytrain.micro.in_process import InProcess

pytestmark = pytest.mark.host_compiler
MARK = 4
FORMATS = ("float16", "int8")
FIRST, LATER = {0: [1, 4], 3: [2]}, {1: [0, 3], 2: [5], 3: [0, 1]}


@pytest.fixture(scope="module", params=FORMATS)
def module(request: pytest.FixtureRequest) -> tt.TrainModule:
    return build(
        update=tt.TaskAdaptive(candidates=4, cache_format=request.param, cached_samples=0),
        budget=tt.Budget(memory=60000),
    )


def kept(library: InProcess, module: tt.TrainModule, slot: int) -> bytes:
    """The bytes that a slot keeps, behind the mark that something was stored there."""
    block = module.metadata["adaptive"]
    plan = library.read("plan")
    words = block["plan_words"]
    size = block["cache"]["slot_bytes"][plan[words["depth"]]][plan[words["cache_point"]]]
    start = plan[words["end"]] + slot * size
    return library.arena[start + MARK : start + size].tobytes()


def as_kept(values: np.ndarray, cache_format: str) -> np.ndarray:
    """What a tensor is after it was kept."""
    if cache_format == "float16":
        return values.astype(np.float16).astype(np.float32)
    unit = np.float32(np.abs(values).max() / np.float32(127))
    scaled = values * (np.float32(1) / unit)
    rounded = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return (np.clip(rounded, -127, 127) * unit).astype(np.float32)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ([3e-37, -1e-37, 0.0, 1e-37], [0.0] * 4),
        ([np.nan, 1.0, -2.0, 0.0], [0.0, 1.0, -2.0, 0.0]),
        ([np.inf, 1.0, -np.inf, np.nan], [np.inf, 0.0, -np.inf, 0.0]),
    ],
)
def test_bytes_keep_what_they_can_of_values_that_are_no_numbers(
    first: list[float], expected: list[float]
) -> None:
    """The same on every core: neither a unit that is infinite nor a cast of what does not fit."""
    made = build(
        update=tt.TaskAdaptive(candidates=4, cache_format="int8", cached_samples=0),
        budget=tt.Budget(memory=60000),
    )
    x = np.zeros(made.metadata["tensors"][0]["shape"], np.float32)
    x.flat[:4] = first
    with loaded(made) as library:
        install(library, made, FIRST)
        library.write("slot", np.array([0], np.int32))
        library.write("x", x)
        library.call("predict_store")
        found = np.frombuffer(kept(library, made, 0), np.uint8)
    unit = found[:4].copy().view(np.float32)[0]
    with np.errstate(over="ignore"):
        restored = found[4:8].copy().view(np.int8).astype(np.float32) * unit
    np.testing.assert_allclose(restored, expected, rtol=1e-2)


def test_an_input_is_kept_as_numpy_would(module: tt.TrainModule) -> None:
    """With the first layer trained the cache holds the input itself: halves of all magnitudes, or bytes with their unit."""
    cache_format = module.metadata["adaptive"]["cache"]["format"]
    rng = np.random.default_rng(0)
    shape = module.metadata["tensors"][0]["shape"]
    if cache_format == "float16":
        exponents = rng.integers(-28, 18, shape)
        x = (rng.choice([-1, 1], shape) * rng.uniform(1, 2, shape) * 2.0**exponents).astype(np.float32)
        x.flat[:6] = [0.0, -0.0, 65519.0, 65520.0, np.inf, 2.0**-25]
    else:
        x = rng.normal(size=shape).astype(np.float32)
    with loaded(module) as library, np.errstate(over="ignore"):
        install(library, module, FIRST)
        library.write("slot", np.array([3], np.int32))
        library.write("x", x)
        library.call("predict_store")
        data = kept(library, module, 3)
        if cache_format == "float16":
            np.testing.assert_array_equal(
                np.frombuffer(data, np.float16)[: x.size], x.astype(np.float16).ravel()
            )
        else:
            values = np.frombuffer(data[4:], np.int8)[: x.size] * np.frombuffer(data[:4], np.float32)
            np.testing.assert_allclose(values, as_kept(x, cache_format).ravel(), atol=1e-6)
            assert np.abs(values - x.ravel()).max() <= np.abs(x).max() / 127 / 2 * 1.001


def test_training_from_a_rounded_cache_stays_close(module: tt.TrainModule) -> None:
    """Losses of three iterations from the cache beside those without it; the difference is the rounding of the prefix."""
    allowed = {"float16": 2e-3, "int8": 5e-2}[module.metadata["adaptive"]["cache"]["format"]]
    with loaded(module) as plain, loaded(module) as cached:
        for library in (plain, cached):
            install(library, module, LATER)
        for iteration in range(3):
            for slot, (image, label) in enumerate(samples(4)):
                cached.write("slot", np.array([slot], np.int32))
                expected = plain.step(image, label, "accumulate")
                entry = "accumulate_store" if iteration == 0 else "accumulate_cached"
                assert cached.step(image, label, entry) == pytest.approx(expected, rel=allowed)
            plain.call("apply")
            cached.call("apply")


def test_the_slots_are_smaller(module: tt.TrainModule) -> None:
    whole = build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(memory=60000))
    rounded, exact = (m.metadata["adaptive"]["cache"]["slot_bytes"] for m in (module, whole))
    share = {"float16": 0.5, "int8": 0.3}[module.metadata["adaptive"]["cache"]["format"]]
    assert all(
        a <= share * b + 12 for p, q in zip(rounded, exact, strict=True) for a, b in zip(p, q, strict=True)
    )


def test_another_format_is_refused() -> None:
    with pytest.raises(PlanError, match="float32, float16, int8"):
        tt.TaskAdaptive(cache_format="bfloat16")
    with pytest.raises(PlanError, match="cached_samples"):
        tt.TaskAdaptive(cached_samples=-1)


POOL = 20000


def test_a_pool_of_its_own_keeps_the_same_and_leaves_the_arena_alone() -> None:
    """Training from the pool is training without a cache, and nothing behind the arena's rows is written."""
    adaptive = {"candidates": 4, "cached_samples": 0}
    pooled = build(update=tt.TaskAdaptive(**adaptive, cache_bytes=POOL), budget=tt.Budget(memory=16384))
    block, pools = pooled.metadata["adaptive"], pooled.metadata["training"]["pools"]
    assert block["cache"]["pool_bytes"] == POOL
    assert pools["cache"] == {"bytes": POOL, "section": "TT_CACHE_SECTION"}
    assert b"All arenas of this library share it" in pooled.files[f"tt_{pooled.name}.c"]
    tight = build(update=tt.TaskAdaptive(**adaptive), budget=tt.Budget(memory=16384))
    assert "cache" not in tight.metadata["training"]["pools"]
    words = block["plan_words"]
    with loaded(pooled) as library, loaded(tight) as plain:
        for each in (library, plain):
            install(each, pooled, LATER)
        plan = library.read("plan")
        size = block["cache"]["slot_bytes"][plan[words["depth"]]][plan[words["cache_point"]]]
        slots = POOL // size
        assert plan[words["cache_slots"]] == slots >= 2
        behind = library.arena[plan[words["end"]] :].copy()
        for iteration in range(3):
            for slot, (x, label) in enumerate(samples(2)):
                library.write("slot", np.array([slot], np.int32))
                for each in (library, plain):
                    each.write("x", x)
                    each.write("label", np.array([label], np.int32))
                library.call("accumulate_cached" if iteration else "accumulate_store")
                plain.call("accumulate")
                np.testing.assert_array_equal(library.read("loss"), plain.read("loss"))
            for each in (library, plain):
                each.call("apply")
        np.testing.assert_array_equal(library.arena[plan[words["end"]] :], behind)
        library.write("slot", np.array([slots], np.int32))
        with pytest.raises(TransportError):
            library.call("predict_cached")


def test_a_pool_is_a_number_of_bytes() -> None:
    with pytest.raises(PlanError, match="cache_bytes"):
        tt.TaskAdaptive(cache_bytes=-1)
