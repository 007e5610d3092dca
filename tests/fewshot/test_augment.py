"""Augmentation: ranges, determinism, what is refused."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest

from tvm_tinytrain.adaptation import DeviceDraws, DiffAugment
from tvm_tinytrain.errors import PlanError, ShapeError
from tvm_tinytrain.targets.runtime_files import runtime_folder

STILL = {"brightness": 0.0, "saturation": 0.0, "contrast": 0.0, "translation": 0.0, "flip": 0.0}


def images(n: int = 6, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (n, 3, size, size)).astype(np.float32)


def test_a_seed_decides_and_the_input_stays() -> None:
    x = images()
    before = x.copy()
    first, again, other = (DiffAugment()(x, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.dtype == np.float32 and first.shape == x.shape
    assert np.array_equal(first, again) and not np.array_equal(first, other) and np.array_equal(x, before)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    x = images()
    alone = DiffAugment()(x[:1], np.random.default_rng(3))
    assert np.array_equal(alone[0], DiffAugment()(x, np.random.default_rng(3))[0])


def test_nothing_switched_on_changes_nothing() -> None:
    x = images()
    np.testing.assert_allclose(DiffAugment(**STILL)(x, np.random.default_rng(0)), x, atol=1e-6)
    assert np.array_equal(DiffAugment(probability=0.0)(x, np.random.default_rng(0)), x)


def test_flip_mirrors_left_and_right() -> None:
    x = images()
    flipped = DiffAugment(**{**STILL, "flip": 1.0, "probability": 1.0})(x, np.random.default_rng(0))
    np.testing.assert_allclose(flipped, x[..., ::-1], atol=1e-6)


def test_translation_moves_by_at_most_an_eighth_and_fills_with_zero() -> None:
    x = np.ones((200, 1, 16, 16), np.float32)
    moved = DiffAugment(**{**STILL, "translation": 0.125, "probability": 1.0})(x, np.random.default_rng(0))
    rows = (moved.sum(axis=(1, 3)) > 0).sum(axis=1)
    assert set(rows.tolist()) == {14, 15, 16} and set(np.unique(moved).tolist()) == {0.0, 1.0}
    first = moved[:, 0].any(axis=2).argmax(axis=1)
    assert set(first.tolist()) == {0, 1, 2}


def test_brightness_saturation_and_contrast_keep_their_meaning() -> None:
    x = images(200)
    bright = DiffAugment(**{**STILL, "brightness": 0.5, "probability": 1.0})(x, np.random.default_rng(0)) - x
    shift = bright.mean(axis=(1, 2, 3))
    assert np.abs(bright - shift[:, None, None, None]).max() < 1e-5
    assert -0.5 <= shift.min() < -0.4 and 0.4 < shift.max() <= 0.5
    colour = DiffAugment(**{**STILL, "saturation": 1.0, "probability": 1.0})(x, np.random.default_rng(0))
    np.testing.assert_allclose(colour.mean(axis=1), x.mean(axis=1), atol=1e-5)
    contrast = DiffAugment(**{**STILL, "contrast": 0.5, "probability": 1.0})(x, np.random.default_rng(0))
    ratio = contrast.std(axis=(1, 2, 3)) / x.std(axis=(1, 2, 3))
    assert 0.5 <= ratio.min() < 0.55 and 1.45 < ratio.max() <= 1.5


def test_what_is_no_image_or_no_share_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        DiffAugment()(np.zeros((3, 8), np.float32), np.random.default_rng(0))
    assert "your own source of pseudo-queries" in str(caught.value)
    with pytest.raises(PlanError) as refused:
        DiffAugment(translation=1.5)
    assert "translation: found 1.5" in str(refused.value)
    for share in ("0.5", None, True):
        with pytest.raises(PlanError, match=f"flip: found {share!r}; allowed 0 … 1"):
            DiffAugment(flip=share)  # type: ignore[arg-type]


def test_draws_of_a_seed_that_no_device_has_are_refused() -> None:
    for seed in (1.5, "1", True, -1, 1 << 64):
        with pytest.raises(
            PlanError, match=f"seed: found {seed!r}; allowed a whole number, 0 to 18446744073709551615"
        ):
            DeviceDraws(seed)  # type: ignore[arg-type]


def test_draws_of_a_numpy_seed_are_those_of_the_int() -> None:
    seed = (1 << 62) + 12345
    got, expected = (DeviceDraws(s).random((5,)) for s in (np.int64(seed), seed))  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, expected)


class _Options(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in ("probability", "brightness", "saturation", "contrast", "translation", "flip")
    )


class _Draws:
    """Stands in for a generator: gives these draws."""

    def __init__(self, draws: np.ndarray) -> None:
        self.draws = draws

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        assert self.draws.shape == shape
        return self.draws


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder, out = runtime_folder(), tmp_path_factory.mktemp("augment") / "augment.so"
    flags = ["-std=c99", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    source = str(folder / "adapt" / "tt_augment.c")
    subprocess.run(
        ["gcc", *flags, "-I", str(folder / "include"), source, "-o", str(out)],
        check=True,
    )
    return ctypes.CDLL(str(out))


def augmented(library: ctypes.CDLL, how: DiffAugment, image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    options = _Options(*(getattr(how, name) for name, _ in _Options._fields_))
    shape, out = (ctypes.c_uint32 * 3)(*image.shape), np.full_like(image, np.nan)
    given = draws.astype(np.float32)
    library.tt_augment(
        ctypes.byref(options), shape, *(ctypes.c_void_p(a.ctypes.data) for a in (given, image, out))
    )
    return out


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    "how", [DiffAugment(), DiffAugment(probability=1.0, translation=0.5), DiffAugment(probability=0.0)]
)
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 7, 12), (2, 1, 5)])
def test_the_device_makes_what_the_host_makes(
    in_c: ctypes.CDLL, how: DiffAugment, shape: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        image = rng.uniform(-1, 1, shape).astype(np.float32)
        draws = (rng.integers(0, 1 << 24, (1, 8)) / (1 << 24)).astype(np.float32).astype(np.float64)
        expected = how(image[None], _Draws(draws))[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(augmented(in_c, how, image, draws[0]), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    ("translation", "size"),
    [(0.35, 10), (0.35, 30), (0.45, 50), (0.65, 10), (0.7, 5), (0.95, 90), (0.125, 12), (1.0, 5)],
)
def test_the_device_moves_as_far_as_the_host(in_c: ctypes.CDLL, translation: float, size: int) -> None:
    """Where translation · size is a half in real numbers, float32 and float64 round it apart."""
    how = DiffAugment(**{**STILL, "probability": 1.0, "translation": translation})
    draws = np.full((1, 8), 0.5)
    image = np.arange(1, size**2 + 1, dtype=np.float32).reshape(1, size, size)
    for draws[0, 5], draws[0, 6] in ((0.0, 1 - 2.0**-24), (1 - 2.0**-24, 0.0), (0.25, 0.75)):
        expected = how(image[None], _Draws(draws))[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(augmented(in_c, how, image, draws[0]), expected, rtol=1e-5)


@pytest.mark.host_compiler
@pytest.mark.parametrize("name", ["probability", "flip"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.7, 0.9])
def test_a_draw_at_the_edge_decides_alike(in_c: ctypes.CDLL, name: str, share: float) -> None:
    how = DiffAugment(**{**STILL, "probability": 1.0, "flip": 1.0, name: share})
    image = np.arange(1, 10, dtype=np.float32).reshape(1, 3, 3)
    for edge in (int(share * 2**24) + step for step in (-1, 0, 1)):
        draws = np.zeros((1, 8))
        draws[0, ("probability", "flip").index(name)] = edge / 2**24
        expected = how(image[None], _Draws(draws))[0]  # type: ignore[arg-type]
        np.testing.assert_allclose(augmented(in_c, how, image, draws[0]), expected, rtol=1e-5)


@pytest.mark.host_compiler
def test_the_devices_draws(in_c: ctypes.CDLL) -> None:
    state = ctypes.c_uint64(42)
    draws = np.zeros((500, 8), np.float32)
    for row in draws:
        in_c.tt_augment_draw(ctypes.byref(state), ctypes.c_void_p(row.ctypes.data))
    assert draws.min() >= 0.0 and draws.max() < 1.0
    assert abs(draws.mean() - 0.5) < 0.02 and abs(draws.std() - 12**-0.5) < 0.01
    assert len(np.unique(draws)) > 3990
    # PCG32's published step and output function, in Python's integers
    number, expected = 42, []
    for _ in range(8):
        mixed, turn = (((number >> 18) ^ number) >> 27) & 0xFFFFFFFF, number >> 59
        expected.append((((mixed >> turn) | (mixed << (-turn & 31))) & 0xFFFFFFFF) >> 8)
        number = (number * 6364136223846793005 + 1442695040888963407) % (1 << 64)
    np.testing.assert_array_equal(draws[0], np.array(expected) / np.float32(1 << 24))
    np.testing.assert_array_equal(draws, DeviceDraws(42).random((500, 8)))
