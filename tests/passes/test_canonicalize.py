"""Canonicalize: one form for each way to write an operator. That the numbers stay is checked with the gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn
from tvm.script import ir as I
from tvm.script import relax as R

from benchmarks.operator_cases import Lambda
from tests.passes.helpers import Kernels, assert_same, with_zeros
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.canonicalize import Canonicalize
from tvm_tinytrain.passes.kernels.activations import Activation, activation
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.lower_layers import LowerLayers
from tvm_tinytrain.passes.rewriting import bindings, callee, op_name
from tvm_tinytrain.passes.state import get_layers, get_values, with_values

IMAGE = (1, 4, 6, 6)


def calls(function: Callable[..., Tensor] | nn.Module, *shapes: tuple[int, ...]) -> list[str]:
    """What the pass makes of a function: operators, kinds of kernels, names of elementwise functions; views left out."""
    module = function if isinstance(function, nn.Module) else Lambda(function)
    inputs = tuple(torch.zeros(s) for s in shapes or (IMAGE,))
    mod = Canonicalize()(import_model(module.eval(), example_inputs=inputs))
    names = []
    for b in bindings(mod["main"]):
        gv = callee(b.value)
        if gv is None:
            names.append(op_name(b.value).removeprefix("relax."))
            continue
        kind = str(kernel_kind(mod[gv]))
        names.append(kernel_spec(mod[gv])["function"] if kind == "activation" else kind)
    return [n for n in names if n not in ("reshape", "DataflowVar", "Var", "TupleGetItem")]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nn.Hardswish(), ["ramp_product"]),
        (nn.Hardsigmoid(), ["ramp"]),
        (lambda x: x * F.relu6(x + 3.0) / 6.0, ["ramp_product"]),
        (lambda x: x * (F.hardtanh(x + 3.0, 0.0, 6.0) * (1.0 / 6.0)), ["ramp_product"]),
        (lambda x: F.relu6(x + 3.0) / 6.0 + x, ["ramp", "add"]),
        (nn.ReLU6(), ["clip"]),
        (lambda x: F.relu(x).clamp(max=6.0), ["clip"]),
        (lambda x: x.clamp(min=0.0), ["nn.relu"]),
        (lambda x: x.clamp(min=0.5), ["ramp"]),
        (lambda x: torch.maximum(x, torch.tensor(0.5)), ["ramp"]),
        (nn.SiLU(), ["silu"]),
        (lambda x: torch.sigmoid(x) * x, ["silu"]),
        (lambda x: torch.sigmoid(x) * (x + 1.0), ["sigmoid", "add", "multiply"]),
        (nn.GELU(), ["gelu"]),
        (nn.ELU(), ["elu"]),
        (nn.LeakyReLU(0.0), ["nn.relu"]),
        (nn.LeakyReLU(-0.1), ["leaky_relu_negative"]),
        (lambda x: x.square(), ["multiply"]),
        (lambda x: x**0.5, ["sqrt"]),
        (lambda x: x**1.0, []),
        (lambda x: x**1.5, ["power"]),
    ],
)
def test_elementwise_functions(function: Callable[..., Tensor], expected: list[str]) -> None:
    assert calls(function) == expected


@pytest.mark.parametrize(
    "function",
    [
        nn.Dropout(),
        nn.Identity(),
        lambda x: x * 1.0 + 0.0,
        lambda x: x.permute(0, 1, 2, 3),
        lambda x: x.expand(1, 4, 6, 6).repeat(1, 1, 1, 1),
        lambda x: x.reshape(1, 4, 36).unsqueeze(0).reshape(IMAGE),
        lambda x: x[:, :, 0:6],
        lambda x: F.pad(x, (0, 0)),
        lambda x: torch.cat([x], 1),
        lambda x: x[:, [0, 1, 2, 3]],
    ],
)
def test_identities_vanish(function: Callable[..., Tensor]) -> None:
    assert calls(function) == []


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x[:, 2], ["strided_slice"]),
        (lambda x: x.flip(2), ["gather"]),
        (lambda x: x.roll(1, 3), ["gather"]),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), ["gather", "gather"]),
        (lambda x: F.interpolate(x, scale_factor=3), ["upsample"]),
        (lambda x: F.interpolate(x, size=(6, 9)), ["gather"]),
        (lambda x: F.interpolate(x[:, :, 0], scale_factor=2), ["strided_slice", "upsample"]),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), ["bilinear"]),
        (lambda x: F.pixel_shuffle(x, 2), ["permute_dims"]),
        (lambda x: torch.stack([x, x], 1), ["concat"]),
    ],
)
def test_indices_known_at_compile_time(function: Callable[..., Tensor], expected: list[str]) -> None:
    assert calls(function) == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nn.AdaptiveAvgPool2d(1), ["mean"]),
        (nn.AdaptiveAvgPool2d((3, 2)), ["nn.avg_pool2d"]),
        (nn.AdaptiveAvgPool2d((5, 2)), ["nn.adaptive_avg_pool2d"]),
        (nn.AvgPool2d(6), ["mean"]),
        (nn.LayerNorm(6), ["group_norm"]),
        (nn.GroupNorm(2, 4), ["group_norm"]),
        (nn.InstanceNorm2d(4, affine=True), ["group_norm"]),
        (nn.Softmax(1), ["softmax"]),
        (lambda x: x @ x.mT, ["matmul"]),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x),
            ["multiply"] * 2 + ["matmul", "softmax", "matmul"],
        ),
        (lambda x: torch.where(x > 0.5, x, 0.0), ["select"]),
        (lambda x: torch.where((x > 0.5) | ~(x > -0.5), x, 0.0), ["select", "select"]),
    ],
)
def test_kernels(function: Callable[..., Tensor], expected: list[str]) -> None:
    found = calls(function)
    if "matmul" in expected:  # the transposition is read in place, layouts around attention are not
        found = [n for n in found if n != "permute_dims"]
    assert found == expected


def test_weights_are_left_for_lower_layers() -> None:
    net = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 3))
    assert calls(net, (1, 6)) == ["permute_dims", "matmul", "add", "nn.relu", "permute_dims", "matmul", "add"]


def test_what_others_read_is_not_taken_apart() -> None:
    """The clamp is needed anyhow: a second kernel of its operand would not replace it."""
    assert calls(lambda x: (y := F.relu6(x)) / 6.0 + y) == ["clip", "divide", "add"]


def test_padding_goes_into_the_convolution() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 1, 4, 4), "float32"), w: R.Tensor((2, 1, 3, 3), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                p = R.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 4])
                y = R.nn.conv2d(p, w, strides=[2, 2], padding=[1, 0, 1, 0])
                R.output(y)
            return y

    @R.function
    def main(x: R.Tensor((1, 1, 4, 4), "float32"), w: R.Tensor((2, 1, 3, 3), "float32")):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.nn.conv2d(x, w, strides=[2, 2], padding=[2, 3, 3, 4])
            R.output(y)
        return y

    assert_same(Canonicalize()(with_zeros(Before)), Kernels().module(main=main))


def test_index_parameter_becomes_a_table_once() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 3), "float32"), index: R.Tensor((4,), "int64")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                a = R.take(x, index, axis=1)
                b = R.take(a, index, axis=1)
                R.output(b)
            return b

    index = np.array([2, 0, -1, 0], np.int64)
    after = Canonicalize()(with_values(Before, {"index": index}))
    values = get_values(after)
    assert [p.name for p in after["main"].params] == ["x", *values]
    assert {n: v.tolist() for n, v in values.items()} == {"table_0": [2, 0, 2, 0], "table_1": [2, 0, 3, 0]}
    assert all(v.dtype == np.int32 for v in values.values())


def test_hardswish_is_one_kernel() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                a = R.add(x, R.const(3.0, "float32"))
                b = R.clip(a, 0.0, 6.0)
                c = R.multiply(b, x)
                y = R.divide(c, R.const(8.0, "float32"))
                R.output(y)
            return y

    after = Canonicalize()(with_zeros(Before))
    (kernel,) = [f for gv, f in after.functions.items() if gv.name_hint != "main"]
    expected = activation(Activation("ramp_product", (0.125, 0.375, 0.0, 0.75)), (1, 4))
    tvm.ir.assert_structural_equal(kernel, expected.without_attr("global_symbol"))


def test_operator_without_rule_stays() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((1, 4), "float32")):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.sort(x, axis=1)
                R.output(y)
            return y

    before = with_zeros(Before)
    assert_same(Canonicalize()(before), before)


def test_masks_are_looked_for_in_a_time_that_grows_with_depth() -> None:
    """Each layer reads the one before twice: all paths to the input are more than could be walked."""

    def deep(x: Tensor) -> Tensor:
        for _ in range(40):
            x = x + x * 0.5
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    assert calls(deep, (1, 5, 4))[-3:] == ["add", "softmax", "matmul"]


@pytest.mark.parametrize(
    ("function", "weight"),
    [
        (lambda x, w: F.linear(x.mT, w), (6, 5)),
        (lambda x, w: torch.bmm(x, w.expand(3, 8, 6)), (8, 6)),
        (lambda x, w: x @ w.expand(3, 6, 8).mT, (6, 8)),
        (lambda x, w: x @ w.repeat(3, 1, 1), (8, 6)),
        (lambda x, w: x[:1] @ w[None].expand(3, 8, 6), (8, 6)),
    ],
    ids=["strided input", "batch of weights", "turned", "repeated", "one sample"],
)
def test_a_weight_repeated_for_every_sample_is_a_linear_layer(
    function: Callable[..., Tensor], weight: tuple[int, ...]
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(weight))

        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.weight)

    mod = import_model(Net().eval(), example_inputs=(torch.zeros(3, 5, 8),))
    layers = get_layers(LowerLayers()(Canonicalize()(mod)))
    assert [(la.kind, la.weight, la.weight_shape) for la in layers] == [
        ("linear", "weight", (6, 5 if weight == (6, 5) else 8))
    ]
