"""The selection benchmark's own oracle and its check of budgets, on problems that take no build."""

from __future__ import annotations

from argparse import Namespace

import numpy as np
import pytest

from benchmarks.common import Report
from benchmarks.device_select import DeviceSelect, option_words
from benchmarks.selection import brute_force, exceeds, small_case, small_problems
from tvm_tinytrain.selection import Budgets, TaskAdaptive, select


@pytest.mark.host_compiler
def test_small_problems() -> None:
    report = Report(Namespace(json=None))
    small_problems(report, DeviceSelect(), 20)
    assert [(check.got, check.ok) for check in report.checks] == [("20 of 20", True)] * 2


def test_budgets_are_summed_up_apart() -> None:
    """The check finds what it is there for: the same plan breaks a budget that is one byte or MAC less."""
    seen = 0
    for seed in range(30):
        tables, case = small_case(np.random.default_rng(seed))
        found = select(tables, case.budgets, case.fisher, TaskAdaptive("exact", candidates=tables.layers))
        assert found.captured == brute_force(tables, case)
        assert not exceeds(tables, Budgets(found.memory_bytes, found.macs), found)
        for less in ((1, 0), (0, 1)):
            if found.memory_bytes >= less[0] and found.macs >= less[1]:
                tight = Budgets(found.memory_bytes - less[0], found.macs - less[1])
                assert exceeds(tables, tight, found)
                seen += 1
    assert seen > 30


def test_option_words() -> None:
    words = option_words(Budgets(5, (7 << 32) + 6), TaskAdaptive("exact", seed=(3 << 32) + 2))
    assert list(words) == [5, 6, 7, 6, 1 << 16 | 4, 0, 2, 3, 25]
    assert list(option_words(Budgets(), TaskAdaptive()))[:3] == [2**32 - 1] * 3
