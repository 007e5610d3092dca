"""What of a PyTorch network is trained: parameters that have a gradient; no buffers, nothing behind ``detach`` or ``no_grad``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tvm_tinytrain as tt
from tests.frontend.relay_writer import export_program
from tests.frontend.running import run as run_main
from tests.passes.operator_oracle import derive, lowered, reference, run
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.derive_backward import DeriveBackward
from tvm_tinytrain.passes.drop_gradient_stops import DropGradientStops
from tvm_tinytrain.passes.reverse_mode import NO_GRADIENT
from tvm_tinytrain.passes.rewriting import bindings, op_name
from tvm_tinytrain.passes.state import get_layers, get_values

SHAPE = (1, 4)


class Between(nn.Module):
    """Two linear layers, a function of the first one's result between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def without_gradient(y: Tensor) -> Tensor:
    with torch.no_grad():
        z = torch.sigmoid(y)
    return y * z


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.tanh(y + ((y * 8).round() / 8 - y).detach()),  # a straight-through estimator
        lambda y: y * y.detach().sigmoid(),
        without_gradient,
    ],
)
def test_gradients_around_what_has_none(function: Callable[[Tensor], Tensor]) -> None:
    net = Between(function)
    x, label = torch.linspace(-1, 1, 4).reshape(SHAPE), np.zeros((1, 3), np.float32)
    _, expected = reference(net.double(), x, torch.from_numpy(label), "mse")
    net.float()
    _, got = run(derive(lowered(net, SHAPE, "mse"), list(expected)), x.numpy(), label)
    assert np.linalg.norm(got["a_weight"]) > 1e-3
    for name, grad in expected.items():
        np.testing.assert_allclose(got[name], grad, rtol=1e-4, atol=1e-6, err_msg=name)


def test_gradient_stops_are_gone_behind_the_backward_pass() -> None:
    mod = DropGradientStops()(DeriveBackward()(lowered(Between(lambda y: y * y.detach()), SHAPE, "mse")))
    for name in ("predict", "step"):
        assert NO_GRADIENT not in [op_name(b.value) for b in bindings(mod[name])]


def test_a_program_is_left_as_it_was() -> None:
    program = export_program(Between(lambda y: without_gradient(y) + y.detach()), SHAPE)
    before = program.graph_module.code
    import_model(program)
    assert program.graph_module.code == before == program.graph_module.recompile().src


def trained(net: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, str | None]]:
    return [(la.weight, la.bias) for la in get_layers(lowered(net, shape, "mse"))]


class Backbone(nn.Module):
    """A backbone that is not to be trained, under a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.h = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = F.relu(self.c(x)).mean((2, 3))
        return self.h(y)


def test_layers_without_gradient_are_not_trained() -> None:
    assert trained(Backbone(), (1, 2, 5, 5)) == [("h_weight", "h_bias")]


class Blur(nn.Module):
    """A fixed filter between two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c, self.h = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
        self.register_buffer("k", torch.ones(4, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(F.relu(self.c(x)), self.k, stride=2, groups=4)
        return self.h(y.mean((2, 3)))


class Bank(nn.Module):
    """Fixed linear maps in front of a classifier and behind it; one of them is computed from indices."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.rand(9, 5))
        self.h = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(9, dtype=torch.float32).reshape(3, 3) / 9
        return self.h((x @ self.bank).tanh()) @ ramp @ self.bank[:3]


def test_buffers_are_not_trained() -> None:
    assert trained(Blur(), (1, 2, 9, 9)) == [("c_weight", "c_bias"), ("h_weight", "h_bias")]
    assert trained(Bank(), (1, 9)) == [("h_weight", "h_bias")]


def test_gradients_go_through_fixed_filters() -> None:
    net, shape = Blur(), (1, 2, 9, 9)
    x, label = torch.linspace(-1, 1, 162).reshape(shape), np.zeros((1, 3), np.float32)
    mod = DeriveBackward()(lowered(net, shape, "mse"))
    _, got = run(mod, x.numpy(), label)
    F.mse_loss(net(x), torch.from_numpy(label)).backward()
    assert net.c.weight.grad is not None
    np.testing.assert_allclose(got["c_weight"], net.c.weight.grad.numpy(), rtol=1e-4, atol=1e-6)


class Scaled(nn.Linear):
    """Weights and bias times a constant, as in networks with equalised learning rates; the weight has unit rows."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.linear(x, F.normalize(self.weight, dim=1) * 3.0, self.bias * 0.5)


class Tied(nn.Linear):
    """A weight that is also read as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2.0, self.bias) + self.weight.sum()


class Detached(nn.Linear):
    """A weight that is left as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.detach(), self.bias)


@pytest.mark.parametrize(
    ("layer", "shape", "layers", "effective"),
    [
        (
            lambda: parametrizations.weight_norm(nn.Conv2d(2, 4, 3)),
            (1, 2, 4, 4),
            [("v0_weight", "v0_bias")],
            lambda la: la.weight,
        ),
        (
            lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
            (1, 4),
            [("v0_weight", "v0_bias")],
            lambda la: la.weight,
        ),
        (
            lambda: Scaled(4, 3),
            (1, 4),
            [("v0_weight", "v0_bias")],
            lambda la: F.normalize(la.weight, dim=1) * 3,
        ),
        (lambda: Tied(4, 3), (1, 4), [], lambda la: la.weight),
        (lambda: Detached(4, 3), (1, 4), [], None),
    ],
)
def test_layers_of_computed_weights(
    layer: Callable[[], nn.Module],
    shape: tuple[int, ...],
    layers: list[tuple[str, str]],
    effective: Callable[[Any], Tensor] | None,
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(layer(), nn.Tanh()).eval()
    x = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    mod = import_model(net, example_inputs=(x,))
    np.testing.assert_allclose(run_main(mod, x), net(x).detach(), rtol=1e-5, atol=1e-6)
    assert trained(net, shape) == layers
    if effective is not None:
        value = get_values(mod)["v0_weight"]
        np.testing.assert_allclose(value, effective(net[0]).detach(), rtol=1e-5, atol=1e-6)


def test_a_constant_of_the_network_is_one_for_the_compiler() -> None:
    mod = import_model(
        Between(lambda y: torch.maximum(y, torch.tensor(0.5))), example_inputs=(torch.zeros(SHAPE),)
    )
    assert NO_GRADIENT not in [op_name(b.value) for b in bindings(mod["main"])]


def test_a_buffer_cannot_be_asked_for() -> None:
    x = torch.zeros(1, 2, 9, 9)
    (name,) = set(get_values(import_model(Blur(), example_inputs=(x,)))) - {
        "c_weight",
        "c_bias",
        "h_weight",
        "h_bias",
    }
    with pytest.raises(PlanError, match=f"also_train: found {name}; allowed the layers' own"):
        tt.build(Blur(), "host", example_inputs=(x,), also_train=(name,))


def test_a_folded_parameter_cannot_be_asked_for() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)).eval()
    error = "also_train: found v1_weight; allowed .*; name parameters .* that are left when batch norms and constants are folded"
    with pytest.raises(PlanError, match=error):
        tt.build(
            net, "host", example_inputs=(torch.zeros(1, 2, 3, 3),), loss=tt.MSE(), also_train=("v1_weight",)
        )


def test_a_parameter_without_gradient_cannot_be_asked_for() -> None:
    net = Between(lambda y: y * net.scale.detach())
    net.scale = nn.Parameter(torch.ones(6))
    with pytest.raises(PlanError, match="also_train: found scale; allowed the layers' own"):
        tt.build(net, "host", example_inputs=(torch.zeros(SHAPE),), also_train=("scale",))


class ByHand(nn.Module):
    """A product and a bias added to it, as a convolution or a linear layer of channels 4 → 2."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], bias: tuple[int, ...], conv: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn((2, 4, 1, 1) if conv else (2, 4)))
        self.bias, self.function = nn.Parameter(torch.randn(bias)), function

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.function(self, x))


def convolution(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, net.weight)


def rows(x: Tensor) -> Tensor:
    return x.flatten(2).mT


@pytest.mark.parametrize(
    ("function", "bias"),
    [
        (lambda n, x: F.linear(x.permute(0, 2, 3, 1), n.weight, n.bias), (2,)),
        (lambda n, x: F.linear(x.movedim(1, -1)[:, ::2], n.weight, n.bias), (2,)),
        (lambda n, x: F.linear(x.permute(0, 2, 3, 1) * 2.0, n.weight, n.bias), (2,)),
        (
            lambda n, x: F.linear(
                x.permute(0, 2, 3, 1).view(1, 2, 2, 5, 1, 4).transpose(2, 3), n.weight, n.bias
            ),
            (2,),
        ),
        (lambda n, x: rows(x) @ n.weight.T + n.bias, (2,)),
        (lambda n, x: n.bias + rows(x) @ n.weight.T, (1, 1, 2)),
        (lambda n, x: torch.addmm(n.bias, rows(x)[0], n.weight.T), (1, 2)),
        (lambda n, x: convolution(n, x) + n.bias, (2, 1, 1)),
        (lambda n, x: n.bias + convolution(n, x), (1, 2, 1, 1)),
        (lambda n, x: convolution(n, x) + n.bias[:, None, None], (2,)),
        (lambda n, x: convolution(n, x).flatten(2) + n.bias[:, None], (2,)),
    ],
)
def test_product_bias_and_clamp_are_one_layer(
    function: Callable[[Any, Tensor], Tensor], bias: tuple[int, ...]
) -> None:
    shape = (1, 4, 4, 5)
    net = ByHand(function, bias, conv="convolution" in function.__code__.co_names)
    mod = lowered(net, shape, "mse")
    assert [(la.weight, la.bias) for la in get_layers(mod)] == [("weight", "bias")]
    assert "relax.clip" not in [op_name(b.value) for b in bindings(mod["predict"])]
    x = torch.linspace(-3, 3, 80).reshape(shape)
    label = np.zeros(net(x).shape, np.float32)
    _, got = run(derive(mod, ["weight", "bias"]), x.numpy(), label)
    _, expected = reference(net.double(), x, torch.from_numpy(label), "mse")
    for name, grad in expected.items():
        np.testing.assert_allclose(got[name].reshape(grad.shape), grad, rtol=1e-4, atol=1e-6, err_msg=name)
