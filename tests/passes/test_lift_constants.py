"""LiftConstants: numbers that kernels read as tensors become parameters, one for each value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor, nn
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

import tvm_tinytrain as tt
from tests.passes.helpers import assert_same
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.lift_constants import LiftConstants
from tvm_tinytrain.passes.state import get_values, with_values


@I.ir_module
class Before:
    @T.prim_func(private=True, s_tir=True)
    def shifted(x: T.Buffer((4,), "float32"), by: T.Buffer((), "float32"), y: T.Buffer((4,), "float32")):
        for i in T.grid(4):
            with T.sblock("shifted"):
                vi = T.axis.spatial(4, i)
                y[vi] = x[vi] + by[()]

    @R.function
    def predict(x: R.Tensor((4,), "float32"), number_0: R.Tensor((4,), "float32")):
        R.func_attr({"num_input": 1})
        cls = Before
        with R.dataflow():
            a = R.call_tir(cls.shifted, (x, R.const(2.0, "float32")), out_ty=R.Tensor((4,), "float32"))
            b = R.call_tir(cls.shifted, (a, R.const(2.0, "float32")), out_ty=R.Tensor((4,), "float32"))
            c = R.multiply(b, R.const(3.0, "float32"))
            d = R.add(c, number_0)
            R.output(d)
        return d


@I.ir_module
class Expected:
    @T.prim_func(private=True, s_tir=True)
    def shifted(x: T.Buffer((4,), "float32"), by: T.Buffer((), "float32"), y: T.Buffer((4,), "float32")):
        for i in T.grid(4):
            with T.sblock("shifted"):
                vi = T.axis.spatial(4, i)
                y[vi] = x[vi] + by[()]

    @R.function
    def predict(
        x: R.Tensor((4,), "float32"), number_0: R.Tensor((4,), "float32"), number_0_1: R.Tensor((), "float32")
    ):
        R.func_attr({"num_input": 1})
        cls = Expected
        with R.dataflow():
            a = R.call_tir(cls.shifted, (x, number_0_1), out_ty=R.Tensor((4,), "float32"))
            b = R.call_tir(cls.shifted, (a, number_0_1), out_ty=R.Tensor((4,), "float32"))
            c = R.multiply(b, R.const(3.0, "float32"))
            d = R.add(c, number_0)
            R.output(d)
        return d


def test_one_parameter_for_equal_numbers() -> None:
    after = LiftConstants()(with_values(Before, {"number_0": np.zeros(4, np.float32)}))
    assert_same(after, Expected)
    values = get_values(after)
    assert set(values) == {"number_0", "number_0_1"}
    assert values["number_0_1"].shape == () and values["number_0_1"] == 2.0


def test_nothing_to_lift_changes_nothing() -> None:
    once = LiftConstants()(with_values(Before, {"number_0": np.zeros(4, np.float32)}))
    tvm.ir.assert_structural_equal(LiftConstants()(once), once)


@pytest.mark.host_compiler
def test_a_library_reads_such_numbers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.where((x > 0.0) ^ (x > 0.5), x, 0.25))

    net, x = Net().eval(), torch.linspace(-1, 1, 6).reshape(1, 6)
    with InProcess(tt.build(net, "host", example_inputs=(x,))) as library:
        np.testing.assert_allclose(library.predict(x.numpy()), net(x).detach().numpy(), rtol=1e-5)
