"""A small version of benchmarks/gradients.py: operators, a network, random plans."""

from __future__ import annotations

import pytest

from benchmarks.gradients_networks import Compiler, measure_updates
from benchmarks.gradients_operators import measure_operators
from benchmarks.gradients_plans import measure_plans
from benchmarks.gradients_reference import LIMIT
from benchmarks.operator_cases import operator_cases

CASES = ("conv2d kernel of the input's size", "conv2d 3x3 stride 2", "depthwise 5x5", "layer norm", "prelu")

pytestmark = pytest.mark.host_compiler


def test_operators() -> None:
    cases = [case for case in operator_cases() if case.name in CASES]
    results = list(measure_operators(cases, Compiler()))
    assert len(results) >= 3
    for result in results:
        assert not result.failure, result
        assert result.error <= LIMIT, result


def test_network() -> None:
    results = dict(measure_updates("cnn_1d", Compiler(), only=("FullTrain", "UpdatePlan")))
    assert set(results) == {"FullTrain", "UpdatePlan"}
    for update, comparison in results.items():
        assert comparison.share <= 1.0, (update, comparison)


def test_plans_prune_gradients_and_execute_what_is_stated() -> None:
    for result in measure_plans("windows", 6, Compiler()):
        assert result.error <= 1e-6, result
        assert result.trained_error <= LIMIT, result
        assert result.agrees, result
