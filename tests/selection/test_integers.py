"""Quantised potentials and random numbers are the ones that are specified, to the bit."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.selection.integers import SplitMix64, quantise

FLOATS = st.floats(0, width=32, allow_infinity=False, allow_nan=False)


@given(st.lists(FLOATS, min_size=1, max_size=20), st.lists(FLOATS, min_size=1, max_size=20))
def test_quantised_potentials_are_rounded_down_multiples(first: list[float], second: list[float]) -> None:
    values = {3: np.array(first, np.float32), 8: np.array(second, np.float32)}
    largest = max(Fraction(float(v)) for vector in values.values() for v in vector)
    # The unit: 2^-32 of the next power of two above the maximum, and no less than 2^-8 of the smallest subnormal.
    exponent = -126 + 1
    while Fraction(2) ** exponent <= largest:
        exponent += 1
    unit = Fraction(2) ** (exponent - 32)
    for layer, found in quantise(values).items():
        assert found.dtype == np.uint32
        assert found.tolist() == [floor(Fraction(float(v)) / unit) for v in values[layer]]


@given(st.lists(FLOATS, min_size=2, max_size=30))
def test_order_is_kept(values: list[float]) -> None:
    vector = np.array(values, np.float32)
    quantised = quantise({0: vector})[0]
    order = np.argsort(vector, kind="stable")
    assert (np.diff(quantised[order].astype(np.int64)) >= 0).all()


def test_examples() -> None:
    vector = np.array([1.0, 0.5, 3.0, -0.0, 2.0**-30, 2.0**-31], np.float32)
    assert quantise({0: vector})[0].tolist() == [2**30, 2**29, 3 * 2**30, 0, 1, 0]
    assert quantise({0: np.zeros(2, np.float32)})[0].tolist() == [0, 0]


@pytest.mark.parametrize("bad", [-1.0, float("inf"), float("-inf"), float("nan"), -1e-45])
def test_what_is_no_potential_is_refused(bad: float) -> None:
    with pytest.raises(PlanError, match=r"potentials of layer 7.*finite values of at least 0"):
        quantise({7: np.array([1.0, bad], np.float32)})


def test_splitmix64_vectors() -> None:
    """First outputs for seed 1234567 as published with the generator."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    rng = SplitMix64(1234567)
    assert [rng.draw() for _ in published] == [number >> 32 for number in published]
    assert SplitMix64(0).draw() == 0xE220A8397B1DCDAF >> 32
    assert SplitMix64(-1).draw() == SplitMix64(2**64 - 1).draw()
