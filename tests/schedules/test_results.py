"""Every scheduled kernel gives what the kernel as written gives, in C on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.schedules.kernel_cases import kernels, library, lower, results, values
from tvm_tinytrain.emit.kernel_set import KernelSet, emit_kernel_set
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.schedules.runtime_rows import RUNTIME_ROWS

pytestmark = pytest.mark.host_compiler
FLAGS = ("-O1", "-mfma", "-ffp-contract=fast", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
TOLERANCE = 1e-5
Loaded = tuple[KernelSet, InProcess]


@pytest.fixture(scope="module")
def scheduled() -> Iterator[Loaded]:
    made = library(kernels())
    with InProcess(made, cflags=FLAGS) as loaded:
        yield made, loaded


@pytest.fixture(scope="module")
def as_written() -> Iterator[Loaded]:
    made = library(kernels(), ())
    with InProcess(made, cflags=FLAGS) as loaded:
        yield made, loaded


@pytest.mark.parametrize("name", kernels())
def test_equals_the_kernel_as_written(scheduled: Loaded, as_written: Loaded, name: str) -> None:
    args = as_written[0].arguments[name]
    given = values(args, kernels()[name])
    want = results(as_written[1], name, args, given)
    have = results(scheduled[1], name, args, given)
    for arg in args:
        if arg.role == "in":
            np.testing.assert_array_equal(
                have[arg.tensor], given[arg.tensor], err_msg=f"{arg.tensor} was written"
            )
            continue
        error = np.abs(have[arg.tensor].astype(np.float64) - want[arg.tensor]).max()
        assert error <= TOLERANCE * max(1.0, np.abs(want[arg.tensor]).max()), arg.tensor


def test_some_results_are_not_zero(as_written: Loaded) -> None:
    for name in ("pointwise_primes", "depthwise_odd_dx", "dense_stem_dw"):
        args = as_written[0].arguments[name]
        got = results(as_written[1], name, args, values(args, kernels()[name]))
        assert np.abs(got[args[-1].tensor]).max() > 0.1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_rows_at_run_time(count: int) -> None:
    """A kernel whose list ends early leaves what the list does not name as it was; an empty list changes nothing."""
    names = [
        "pointwise_primes_rows",
        "pointwise_primes_dx_rows",
        "depthwise_odd_rows",
        "depthwise_half_dx_rows",
        "pointwise_primes_dx_listed",
        "depthwise_half_dx_listed",
        "db_some",
    ]
    chosen = {n: kernels()[n] for n in names}
    at_run_time = {n: f.with_attr(RUNTIME_ROWS, 1) for n, f in chosen.items()}
    made = emit_kernel_set("cases", lower(at_run_time), rows=dict.fromkeys(names, count))
    with InProcess(made, cflags=FLAGS) as short, InProcess(library(chosen, ()), cflags=FLAGS) as whole:
        for name in names:
            args = made.arguments[name]
            given = values(args, kernels()[name])
            have = results(short, name, args, given)
            want = results(whole, name, args, given)
            changed = [a for a in args if a.role != "in"]
            if count == 0:
                for arg in changed:
                    np.testing.assert_allclose(
                        have[arg.tensor], given[arg.tensor], rtol=0, atol=0, err_msg=name
                    )
            elif not name.endswith("dx_rows") or name.startswith("depthwise"):
                axis = given[f"{name}_channels"][:count]
                for arg in changed:
                    first, second = (
                        np.moveaxis(v[arg.tensor], -3 if v[arg.tensor].ndim == 4 else 0, 0)
                        for v in (have, want)
                    )
                    np.testing.assert_allclose(first[axis], second[axis], rtol=1e-5, atol=1e-5, err_msg=name)
