"""Relax modules that are no straight line of operators from inputs to one tensor, and what the error says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from tests.frontend.running import run
from tvm_tinytrain.errors import ImportModelError, ShapeError, UnsupportedOperatorError
from tvm_tinytrain.frontend import import_model

WEIGHT = {"w": np.arange(18, dtype=np.float32).reshape(6, 3)}


@I.ir_module
class Calls:
    @R.function
    def inner(x: R.Tensor((1, 6), "float32"), w: R.Tensor((6, 3), "float32")) -> R.Tensor((1, 3), "float32"):
        return R.matmul(x, w)

    @R.function
    def main(x: R.Tensor((1, 6), "float32"), w: R.Tensor((6, 3), "float32")) -> R.Tensor((1, 3), "float32"):
        cls = Calls
        y: R.Tensor((1, 3), "float32") = cls.inner(x, w)
        return y


@I.ir_module
class Branches:
    @R.function
    def main(x: R.Tensor((1, 6), "float32"), w: R.Tensor((6, 3), "float32")) -> R.Tensor((1, 3), "float32"):
        c = R.greater(R.sum(x), R.const(0.0, "float32"))
        if c:
            y = R.matmul(x, w)
        else:
            y = R.negative(R.matmul(x, w))
        return y


def module(
    result: Callable[[relax.Expr, relax.Expr], relax.Expr], inputs: int = 1, batch: int = 1
) -> tvm.IRModule:
    """``main(x, w)`` whose result is made of x and x · w."""
    bb = relax.BlockBuilder()
    x, w = (relax.Var(n, relax.TensorType(s, "float32")) for n, s in (("x", (batch, 6)), ("w", (6, 3))))
    with bb.function("main", [x, w], attrs={"num_input": inputs}):
        with bb.dataflow():
            out = bb.emit_output(result(x, bb.emit(relax.op.matmul(x, w))))
        bb.emit_func_output(out)
    return bb.get()


def second(x: relax.Expr, y: relax.Expr) -> relax.Expr:
    return y


@pytest.mark.parametrize(
    ("mod", "params", "kind", "message"),
    [
        (Calls, WEIGHT, UnsupportedOperatorError, "function main: found a call of the function inner; .*Inline"),
        (Branches, WEIGHT, UnsupportedOperatorError, r"function main: found control flow \(if\)"),
        (module(second, 3), WEIGHT, ImportModelError, "attribute num_input: found 3; allowed 1 to 2"),
        (module(second, 0), WEIGHT, ImportModelError, "attribute num_input: found 0; allowed 1 to 2"),
        (module(second), [WEIGHT["w"]], ImportModelError, "params: found list; allowed a mapping"),
        (module(second, batch=0), WEIGHT, ShapeError, r"input x: found shape \[0, 6\]; allowed no dimension of 0"),
        (module(lambda x, y: relax.Tuple([x, y])), WEIGHT, ImportModelError, "result: found 2 results; allowed one tensor"),
        (module(lambda x, y: relax.op.split(y, 3, 1)), WEIGHT, ImportModelError, "result: found 3 results"),
        (module(lambda x, y: relax.Tuple([relax.Tuple([x, y])])), WEIGHT, ImportModelError, "result: found"),
    ],
)  # fmt: skip
def test_modules(mod: tvm.IRModule, params: Mapping[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        import_model(mod, params=params)


@pytest.mark.parametrize(
    "result", [lambda x, y: relax.Tuple([y]), lambda x, y: relax.op.split(y, 1, 1)], ids=["tuple", "split"]
)
def test_a_tuple_of_one_is_its_tensor(result: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> None:
    x = np.ones((1, 6), np.float32)
    np.testing.assert_array_equal(run(import_model(module(result), params=WEIGHT), x), x @ WEIGHT["w"])


def test_branches_of_pytorch() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, torch.relu, torch.tanh, (x,))

    with pytest.raises(UnsupportedOperatorError, match="function main: found"):
        import_model(Net(), example_inputs=(torch.zeros(1, 6),))


def test_an_empty_sample_of_pytorch() -> None:
    with pytest.raises(ShapeError, match=r"found shape \[0, 6\]"):
        import_model(nn.Linear(6, 3), example_inputs=(torch.zeros(0, 6),))
