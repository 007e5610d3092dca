"""The file of kernels brings in the headers that its functions need, whichever they are."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from tvm_tinytrain.emit import c_expr
from tvm_tinytrain.emit.c_kernel import CKernel, print_kernel
from tvm_tinytrain.emit.kernel_source import kernel_source
from tvm_tinytrain.passes.kernels.builder import Arg, make_kernel
from tvm_tinytrain.passes.lower_kernels import lower_kernel

INTRINSICS = (
    "exp", "log", "sqrt", "tanh", "erf", "abs", "floor", "ceil", "pow", "round", "trunc", "sin", "cos", "log1p", "rsqrt",
    "sigmoid", "nearbyint",
)  # fmt: skip


@pytest.mark.parametrize(
    "function", ["expf", "logf", "sqrtf", "powf", "tanhf", "erff", "floorf", "log1pf", "nearbyintf"]
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


def functions_of(intrinsic: str, target: str) -> set[str]:
    """The functions that the C text of ``y[i] = intrinsic(x[i])`` calls."""

    def body(x: Any, y: Any) -> None:
        with T.grid(4) as i, T.sblock("block"):
            at = T.axis.spatial(4, i)
            operands = [x[at]] * (2 if intrinsic == "pow" else 1)
            T.buffer_store(y, getattr(tirx, intrinsic)(*operands), [at])

    kernel = make_kernel("k", {}, [Arg("x", (4,)), Arg("y", (4,), role="out")], body, macs=0)
    text = print_kernel("k", lower_kernel(kernel, tvm.target.Target({"kind": target}))).text
    return set(re.findall(r"\b(\w+)\(", text)) - {"k", "for"}


@pytest.mark.parametrize("target", ["c", "llvm"])
def test_functions_of_the_c_library_and_nothing_else(target: str) -> None:
    called = {name: functions_of(name, target) for name in INTRINSICS}
    assert set().union(*called.values()) <= set(c_expr._MATH.values()) | {"tanhf", "erff", "log1pf"}
    assert called["exp"] == {"expf"} and called["log"] == {"logf"}


def test_every_entry_of_the_table_is_printed() -> None:
    printed = {f for target in ("c", "llvm") for name in INTRINSICS for f in functions_of(name, target)}
    assert set(c_expr._MATH.values()) <= printed
