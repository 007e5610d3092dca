"""The file of kernels brings in the headers that its functions need, whichever they are."""

from __future__ import annotations

import pytest

from tvm_tinytrain.emit.c_kernel import CKernel
from tvm_tinytrain.emit.kernel_source import kernel_source


@pytest.mark.parametrize(
    "function", ["expf", "logf", "sqrtf", "powf", "tanhf", "erff", "floorf", "log1pf", "tt_rsqrtf"]
)
@pytest.mark.parametrize("minmax", [False, True])
def test_a_math_function_brings_its_header(function: str, minmax: bool) -> None:
    prototype = "void k(float *x)"
    kernel = CKernel("k", prototype, f"{prototype} {{ x[0] = {function}(x[0]); }}\n", 0, (True,))
    assert "#include <math.h>" in kernel_source([kernel], "", minmax=minmax)


@pytest.mark.parametrize("constant", ["INFINITY", "(-INFINITY)", "NAN"])
def test_so_does_a_constant_of_it(constant: str) -> None:
    prototype = "void k(float *x)"
    kernel = CKernel("k", prototype, f"{prototype} {{ x[0] = {constant}; }}\n", 0, (True,))
    assert "#include <math.h>" in kernel_source([kernel], "", minmax=False)


def test_nothing_else_does() -> None:
    prototype = "void k(float *x)"
    kernel = CKernel("k", prototype, f"{prototype} {{ x[0] = tt_maxf(x[0], 0.0f); }}\n", 0, (True,))
    assert "math.h" not in kernel_source([kernel], "", minmax=False)
    assert "math.h" in kernel_source([kernel], "", minmax=True)
