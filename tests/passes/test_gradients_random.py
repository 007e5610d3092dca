"""Gradients of random convolutions, transposed convolutions, pools and slices against PyTorch autograd in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.operator_cases import Lambda, OperatorCase
from tests.passes.helpers import assert_close
from tests.passes.operator_oracle import compare, run_kernel
from tvm_tinytrain.passes.kernels.conv2d_transpose import (
    conv2d_transpose_weight_grad,
    transposed_weight_shape,
)
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec

TOGETHER = 10
"""Random cases that are compiled at once: Hypothesis counts them as one example."""
FEW = settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

pytestmark = pytest.mark.host_compiler


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool = False) -> OperatorCase:
    groups = draw(st.integers(1, 3))
    before, after = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(1, 2))
    padding = tuple(draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = [1, 1] if transposed else [max(1, r - 2 * p) for r, p in zip(reach, padding, strict=True)]
    if transposed:  # of one element nothing but padding may be left
        least = [max(1, -(-(2 * p - r + 1) // s) + 1) for r, p, s in zip(reach, padding, stride, strict=True)]
    size = [n + draw(st.integers(0, 4)) for n in least]
    options: dict[str, Any] = {"groups": groups, "bias": draw(st.booleans())}
    if transposed:
        extra = tuple(draw(st.integers(0, s - 1)) for s in stride)
        make = functools.partial(
            nn.ConvTranspose2d, before, after, kernel, stride, padding, extra, dilation=dilation, **options
        )
    else:
        make = functools.partial(nn.Conv2d, before, after, kernel, stride, padding, dilation, **options)
    return OperatorCase(f"{make}", make, ((1, before, *size),))


@st.composite
def pools(draw: st.DrawFn) -> OperatorCase:
    kernel, stride, channels = draw(pairs(1, 4)), draw(pairs(1, 4)), draw(st.integers(1, 3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [max(1, k - 2 * p) + draw(st.integers(0, 5)) for k, p in zip(kernel, padding, strict=True)]
    ceil = draw(st.booleans())
    make: Callable[[], nn.Module]
    if draw(st.booleans()):
        make = functools.partial(nn.MaxPool2d, kernel, stride, padding, ceil_mode=ceil)
    else:
        counted = draw(st.booleans())
        make = functools.partial(nn.AvgPool2d, kernel, stride, padding, ceil, counted)
    return OperatorCase(f"{make} {size}", make, ((1, channels, *size),))


@st.composite
def slices(draw: st.DrawFn) -> OperatorCase:
    """Slices with strides, paddings and permutations in a row."""
    size = draw(st.tuples(*[st.integers(2, 5)] * 3))
    cut = tuple(slice(draw(st.integers(0, n - 1)), None, draw(st.integers(1, 3))) for n in size)
    pads = draw(st.lists(st.integers(0, 2), min_size=6, max_size=6))
    order = draw(st.permutations(range(3)))

    def function(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x[0][cut] * x[0][cut], pads, value=0.5)
        return padded.permute(*order)[None]

    return OperatorCase(f"{size} {cut} {pads} {order}", lambda: Lambda(function), ((1, *size),))


def check(cases: list[OperatorCase]) -> None:
    errors = compare(tuple(cases))
    # tensors that are zero but for rounding have no relative error
    assert not {name: error for name, error in errors.items() if not error <= 1e-5}


def several(strategy: st.SearchStrategy[OperatorCase]) -> st.SearchStrategy[list[OperatorCase]]:
    return st.lists(strategy, min_size=TOGETHER, max_size=TOGETHER)


@FEW
@given(several(convolutions()))
def test_convolutions(cases: list[OperatorCase]) -> None:
    check(cases)


@FEW
@given(several(convolutions(transposed=True)))
def test_transposed_convolutions(cases: list[OperatorCase]) -> None:
    check(cases)


@FEW
@given(several(pools()))
def test_pools(cases: list[OperatorCase]) -> None:
    check(cases)


@FEW
@given(several(slices()))
def test_slices(cases: list[OperatorCase]) -> None:
    check(cases)


@pytest.mark.parametrize("groups", [1, 2])
def test_selected_channels_of_a_transposed_convolution(groups: int) -> None:
    """The gradient over channel lists is the rows (and columns) of the whole one."""
    spec = Conv2DSpec(6, 9, 8, 4, (3, 2), (2, 1), (1, 0, 1, 0), groups=groups)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, spec.out_height, spec.out_width)).astype(np.float32)
    dy = rng.normal(size=(1, 6, 9, 8)).astype(np.float32)
    full = run_kernel(conv2d_transpose_weight_grad(spec), x, dy, shape=transposed_weight_shape(spec))
    outs, ins = np.array([0, 3, 5], np.int32), np.array([1], np.int32)
    part = run_kernel(
        conv2d_transpose_weight_grad(spec, channels=3, inputs=1), x, dy, outs, ins, shape=(3, 1, 3, 2)
    )
    assert_close({"rows": part}, {"rows": full[np.ix_(outs, ins)]}, 1e-7)
