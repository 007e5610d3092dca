"""Kernels with vectors of floats give what the kernels as written give: on x86, an emulated Cortex-A53 and Cortex-M55."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.schedules.kernel_cases import Kernels, kernels, library, lower, results, values
from tvm_tinytrain.emit.kernel_set import emit_kernel_set
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.session import Session
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.stream_spec import Link, Stage, StreamSpec
from tvm_tinytrain.passes.kernels.streamed import streamed_block
from tvm_tinytrain.schedules import RULES
from tvm_tinytrain.schedules.vectors import best_vector_tile, lanes_of
from tvm_tinytrain.targets.target import Target, parse_target

A53, V3, M7, M55 = (
    parse_target(f"c -mcpu={name}") for name in ("cortex-a53", "x86-64-v3", "cortex-m7", "cortex-m55")
)
CASES = ("_even", "pointwise_tile_and_rest", "depthwise_odd")
LEFT_OUT = ("_plain", "_dw_one", "_dx_rows")
FLAGS = (
    "-O1",
    "-march=x86-64-v3",
    "-ffp-contract=fast",
    "-std=c99",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-pedantic",
)
TOLERANCE = 1e-5
CPU = Path("/proc/cpuinfo")
needs_avx2 = pytest.mark.skipif(
    not (CPU.exists() and " avx2 " in CPU.read_text(encoding="ascii", errors="replace")),
    reason="no AVX2 here",
)


def chosen() -> Kernels:
    """Some of the cases, and a block that streams."""
    found = {n: f for n, f in kernels().items() if any(c in n for c in CASES) and not n.endswith(LEFT_OUT)}
    stages = (
        Stage(Conv2DSpec(3, 6, 16, 8, (1, 1)), True, 0.0, 6.0),
        Stage(Conv2DSpec(8, 6, 16, 8, (3, 3), (2, 2), (1, 1, 1, 1), groups=8), True, 0.0, 6.0),
        Stage(Conv2DSpec(8, 3, 8, 5, (1, 1)), True, None, None),
    )
    found["streamed"] = streamed_block(StreamSpec((Link(*stages),)))
    return found


def check(have: dict[str, np.ndarray], want: dict[str, np.ndarray], name: str) -> None:
    for tensor, value in want.items():
        error = np.abs(have[tensor].astype(np.float64) - value).max(initial=0.0)
        assert error <= TOLERANCE * max(1.0, np.abs(value).max(initial=0.0)), f"{name}: {tensor}"


@needs_avx2
@pytest.mark.host_compiler
def test_avx2_equals_the_kernel_as_written() -> None:
    cases = chosen()
    vectors, plain = library(cases, RULES, V3), library(cases, ())
    with InProcess(vectors, cflags=FLAGS) as fast, InProcess(plain, cflags=("-O0",)) as slow:
        for name, func in cases.items():
            args = plain.arguments[name]
            given = values(args, func)
            check(results(fast, name, args, given), results(slow, name, args, given), name)
    text = {name: vectors.files[f"tt_cases_{name}.c"].decode() for name in cases}
    for name in (
        "pointwise_even",
        "pointwise_even_dx",
        "pointwise_even_dw",
        "depthwise_even",
        "depthwise_even_dx",
    ):
        assert "tt_f8 acc" in text[name], name
    assert "tt_half8(" in text["pointwise_even_dw"]  # sums of eight parts are halved as vectors
    assert "tt_even8(" in text["dense_even"] and "tt_f8 " in text["streamed"]


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    ("board", "target"),
    [
        pytest.param(
            "qemu-aarch64", A53, id="neon", marks=pytest.mark.needs("qemu-aarch64", "aarch64-linux-gnu-gcc")
        ),
        pytest.param("mps3-an547", M55, id="helium", marks=pytest.mark.emulator),
    ],
)
def test_on_a_board_equals_the_kernel_as_written(board: str, target: Target) -> None:
    names = [
        "pointwise_even",
        "pointwise_even_dw_some",
        "depthwise_even_dx",
        "linear_even",
        "dense_even",
        "streamed",
    ]
    cases = {name: chosen()[name] for name in names}
    made = emit_kernel_set("cases", lower(cases, RULES, target), minmax=True)
    plain = library(cases, ())
    with Session(made, board) as session, InProcess(plain, cflags=("-O0",)) as slow:
        for name, func in cases.items():
            args = plain.arguments[name]
            given = values(args, func)
            for tensor, value in given.items():
                session.write(tensor, value)
            session.call(name)
            have = {a.tensor: np.asarray(session.read(a.tensor)) for a in args}
            check(have, results(slow, name, args, given), name)
    assert all(b"tt_f4 " in made.files[f"tt_cases_{name}.c"] for name in names[:4])


def test_lanes() -> None:
    assert [lanes_of(V3.to_tvm(), n) for n in (3, 4, 8, 12, 16, 17)] == [1, 4, 8, 4, 8, 8]
    assert [lanes_of(A53.to_tvm(), n) for n in (3, 4, 17)] == [1, 4, 4]
    assert lanes_of(M7.to_tvm(), 16) == 1 == lanes_of(parse_target("host").to_tvm(), 16)


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize("sizes", [(1, 8, 8), (24, 64, 8), (7, 20, 4), (160, 16, 4)])
def test_a_tile_of_vectors_fits_the_registers(sizes: tuple[int, int, int], registers: int) -> None:
    rows, columns, lanes = sizes
    r, c = best_vector_tile(rows, columns, lanes, registers)
    assert 1 <= r <= rows and c % lanes == 0 and lanes <= c <= columns
    assert r * c // lanes + c // lanes + 1 <= registers
