"""Parameters beside the layers, and parameters that several operators read: trained as PyTorch does, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tvm_tinytrain as tt
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.micro.in_process import InProcess


class Net(nn.Module):
    """``forward(net, x)`` over the modules and tensors that are given by name."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.5


def trains_like_torch(net: Net, x: Tensor, *, adam: bool = False, **options: Any) -> None:
    """Three steps of all of the network's parameters."""
    accumulate = options.get("accumulate", False)
    options["optimizer"] = tt.Adam(0.01, eps=1e-4) if adam else tt.SGD(0.1, 0.9)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    if adam:
        optimizer = torch.optim.Adam(net.parameters(), 0.01, eps=1e-4)
    with InProcess(tt.build(net, "host", example_inputs=(x,), **options)) as library:
        start = net(x).detach().numpy()
        for label in (0, 2, 1):
            loss = nn.functional.cross_entropy(net(x), torch.tensor([label]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            got = library.step(x, label, "accumulate" if accumulate else "step")
            assert got == pytest.approx(loss.item(), rel=1e-5)
            if accumulate:
                library.call("apply")
        expected = net(x).detach().numpy()
        assert np.abs(expected - start).max() > 1e-2
        np.testing.assert_allclose(library.predict(x), expected, rtol=1e-4, atol=1e-5)
        for name, parameter in net.named_parameters():
            got = library.read(name.replace(".", "_"))
            np.testing.assert_allclose(got, parameter.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def with_positions(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.tanh(net.embed(x) + net.pos).mean(1))


def with_two(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.tanh(net.embed(x) + net.pos + net.kind).mean(1))


def residual(net: Any, x: Tensor) -> Tensor:
    y = net.embed(x) + net.pos
    return net.head((net.inner(torch.tanh(y)) + y + net.kind).mean(1))


@pytest.mark.host_compiler
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("forward", [with_positions, with_two, residual])
def test_parameters_that_are_added(forward: Callable[..., Tensor], adam: bool, accumulate: bool) -> None:
    """The gradient of such a parameter is the adjoint that the layers in front go on from."""
    torch.manual_seed(0)
    parts = {"embed": nn.Linear(4, 6), "head": nn.Linear(6, 3), "pos": random(1, 5, 6)}
    if forward is not with_positions:
        parts["kind"] = random(1, 5, 6)
    if forward is residual:
        parts["inner"] = nn.Linear(6, 6)
    net = Net(forward, **parts)
    also = tuple(name for name in ("pos", "kind") if name in parts)
    trains_like_torch(net, random(1, 5, 4), adam=adam, also_train=also, accumulate=accumulate)


def queried(net: Any, x: Tensor) -> Tensor:
    scores = net.q(net.query) @ net.k(x).transpose(1, 2)
    return net.head((scores.softmax(-1) @ x).reshape(1, 4))


def from_a_state(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.tanh(net.k(x) + net.q(net.query)).mean(1))


@pytest.mark.host_compiler
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("forward", [queried, from_a_state])
def test_parameters_that_layers_read_as_inputs(
    forward: Callable[..., Tensor], adam: bool, accumulate: bool
) -> None:
    """The gradient of such a layer's weight reads the parameter as the step found it, not as the step leaves it."""
    torch.manual_seed(0)
    parts = {"q": nn.Linear(4, 4), "k": nn.Linear(4, 4), "head": nn.Linear(4, 3), "query": random(1, 4)}
    net = Net(forward, **parts)
    if forward is queried:
        net.k.bias = None  # softmax takes it away again
    trains_like_torch(net, random(1, 5, 4) * 4, adam=adam, also_train=("query",), accumulate=accumulate)


def gated(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.tanh(net.embed(x) * net.gate.sigmoid() + net.shift)) * net.scale.relu().exp()


@pytest.mark.host_compiler
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_parameters_that_are_one_number(adam: bool, accumulate: bool) -> None:
    torch.manual_seed(0)
    names = ("gate", "shift", "scale")
    numbers = {name: torch.tensor(value) for name, value in zip(names, (0.3, -0.2, 1.5), strict=True)}
    net = Net(gated, embed=nn.Linear(4, 6), head=nn.Linear(6, 3), **numbers)
    trains_like_torch(net, random(1, 4), adam=adam, also_train=names, accumulate=accumulate)


@pytest.mark.host_compiler
def test_moments_in_8_bits_leave_the_layer_in_front_its_gradient() -> None:
    torch.manual_seed(0)
    net = Net(with_positions, embed=nn.Linear(4, 6), head=nn.Linear(6, 3), pos=random(1, 5, 6))
    x = random(1, 5, 4)
    options: Any = {"optimizer": tt.Adam(0.01, state="int8"), "also_train": ("pos",)}
    with InProcess(tt.build(net, "host", example_inputs=(x,), **options)) as library:
        before = library.read("embed_weight")
        library.step(x, 1)
        nn.functional.cross_entropy(net(x), torch.tensor([1])).backward()
        assert net.embed.weight.grad is not None
        moved = np.sign(before - library.read("embed_weight"))
    np.testing.assert_array_equal(moved, np.sign(net.embed.weight.grad.numpy()))


def one_weight(net: Any, x: Tensor) -> Tensor:
    y = torch.tanh(nn.functional.linear(x, net.w, net.b))
    return nn.functional.linear(y, net.w, net.c)


def one_bias(net: Any, x: Tensor) -> Tensor:
    y = torch.tanh(nn.functional.linear(x, net.w, net.b))
    return nn.functional.linear(y, net.v, net.b)


def tied(net: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(torch.relu(nn.functional.linear(x, net.w, net.b)), net.w.t(), net.c)


def bias_that_scales(net: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(nn.functional.linear(x, net.w, net.b) * net.b, net.v)


def shared(forward: Callable[..., Tensor]) -> Net:
    torch.manual_seed(0)
    return Net(forward, w=random(4, 4), v=random(4, 4), b=random(4), c=random(4))


WEIGHT_1_3 = tt.UpdatePlan((tt.LayerUpdate(0, (1, 3), bias=False),))
ALL = tuple(range(4))


def rows_that_change(module: tt.TrainModule) -> dict[str, set[int]]:
    """Rows of each tensor that changes, as the metadata says it."""
    training = module.metadata["training"]
    shapes = {t["name"]: t["shape"] for t in module.metadata["tensors"]}
    found = {name: set(range(shapes[name][0])) for name in training["others"]}
    for entry in training["trainable"]:
        rows = {row for first, end in entry["ranges"] for row in range(first, end)}
        found |= {entry[what]: rows for what in ("weight", "bias") if entry[what] is not None}
    return found


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    ("forward", "plan", "also", "rows"),
    [
        (one_weight, WEIGHT_1_3, (), {"w": (1, 3)}),
        (one_weight, tt.UpdatePlan.from_channels({0: ALL}), (), {"w": ALL, "b": ALL, "c": ALL}),
        (one_weight, tt.UpdatePlan.from_channels({0: (1, 3)}), ("b", "c"), {"w": (1, 3), "b": ALL, "c": ALL}),
        (one_bias, tt.UpdatePlan.from_channels({1: ALL}), (), {"v": ALL, "b": ALL}),
        (one_bias, tt.UpdatePlan.from_channels({0: ALL, 1: ALL}), (), {"w": ALL, "v": ALL, "b": ALL}),
        (
            one_bias,
            tt.UpdatePlan((*WEIGHT_1_3.layers, tt.LayerUpdate(1, ALL))),
            (),
            {"w": (1, 3), "v": ALL, "b": ALL},
        ),
    ],
)
def test_shared_parameters(
    forward: Callable[..., Tensor],
    plan: tt.UpdatePlan,
    also: tuple[str, ...],
    rows: dict[str, tuple[int, ...]],
) -> None:
    """What is shared is trained whole; beside it, rows of what is not."""
    net, rate = shared(forward), 0.5
    x = random(1, 4)
    options: Any = {"optimizer": tt.SGD(rate), "update": plan, "also_train": also}
    module = tt.build(net, "host", example_inputs=(x,), **options)
    assert rows_that_change(module) == {name: set(chosen) for name, chosen in rows.items()}
    with InProcess(module) as library:
        for label in (0, 2, 1):
            np.testing.assert_allclose(library.predict(x), net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
            loss = nn.functional.cross_entropy(net(x), torch.tensor([label]))
            net.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, chosen in rows.items():
                    parameter = getattr(net, name)
                    parameter[list(chosen)] -= rate * parameter.grad[list(chosen)]
            assert library.step(x, label) == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(library.predict(x), net(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("forward", "update", "text"),
    [
        (one_weight, tt.UpdatePlan.from_channels({0: (1, 3)}), r"layer 0 \(w\).* shared c;"),
        (one_bias, tt.UpdatePlan.from_channels({0: (0, 1), 1: (2, 3)}), r"layer 0 \(w\).* shared b;"),
        (one_bias, tt.UpdatePlan.from_channels({1: (0, 2)}), r"layer 1 \(v\).* shared b;"),
        (tied, tt.UpdatePlan.from_channels({0: (1, 3)}), r"layer 0 \(w\).* shared w;"),
        (tied, tt.UpdatePlan((tt.LayerUpdate(0, ALL, (1, 2)),)), r"layer 0 \(w\).* shared w;"),
        (bias_that_scales, tt.UpdatePlan.from_channels({0: (1, 3)}), r"layer 0 \(w\).* shared b;"),
        (one_weight, tt.TaskAdaptive(candidates=1), r"layer 0 \(w\).* shared c;.*TaskAdaptive\(candidates"),
        (one_bias, tt.TaskAdaptive(candidates=2), r"layer 0 \(w\).* shared b;.*TaskAdaptive\(candidates"),
    ],
)
def test_single_channels_of_shared_parameters(
    forward: Callable[..., Tensor], update: object, text: str
) -> None:
    with pytest.raises(PlanError, match="a shared parameter can only be trained whole") as refused:
        tt.build(shared(forward), "host", example_inputs=(torch.ones(1, 4),), update=update)  # type: ignore[arg-type]
    assert re.search(text, str(refused.value))


@pytest.mark.parametrize("memory", [tt.MemoryOptions(), tt.MemoryOptions(input_dtype="uint8")])
def test_no_input_gradient_of_layers_that_read_the_input(memory: tt.MemoryOptions) -> None:
    """Several layers may: queries, keys and values, or parallel stems, one of them in a kernel of several layers."""

    def attention(net: Any, x: Tensor) -> Tensor:
        scores = torch.softmax(net.q(x) @ net.k(x).mT, -1)
        return net.head((scores @ net.v(x)).mean(1))

    def stems(net: Any, x: Tensor) -> Tensor:
        y = net.point(nn.functional.relu6(net.depthwise(nn.functional.relu6(net.expand(x)))))
        return net.head(net.q(x.mean(1)).mean(1) + y.mean((2, 3)))

    qkv = {name: nn.Linear(6, 6) for name in "qkv"}
    block = {
        "expand": nn.Conv2d(2, 12, 1),
        "depthwise": nn.Conv2d(12, 12, 1, groups=12),
        "point": nn.Conv2d(12, 4, 1),
    }
    cases = [
        (attention, qkv, nn.Linear(6, 3), random(1, 5, 6)),
        (stems, {"q": nn.Linear(12, 4), **block}, nn.Linear(4, 3), random(1, 2, 12, 12)),
    ]
    for body, layers, head, x in cases:
        given: Any = {"example_inputs": (x,), "memory": memory, "accumulate": True}
        macs = tt.build(Net(body, **layers, head=head), "host", **given).metadata["macs"]
        update = tt.TaskAdaptive(candidates=1)
        tables = tt.build(Net(body, **layers, head=head), "host", update=update, **given).metadata["adaptive"]
        assert tables["full_macs"] == macs["accumulate"] - macs["predict"]


def test_costs_count_every_use_and_products_without_weights() -> None:
    def body(net: Any, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(net.shared(x))
        return net.head((x @ x.mT).flatten(1))

    net = Net(body, shared=nn.Linear(6, 6), head=nn.Linear(16, 3))
    x = random(1, 4, 6)
    full = tt.build(net, "host", example_inputs=(x,), accumulate=False)
    assert [layer.macs for layer in full.layers] == [3 * 4 * 36, 48]
    macs = full.metadata["macs"]
    assert macs["step"] - macs["predict"] == 2 * (432 + 48) - 144 + 2 * 96
    adaptive = tt.build(net, "host", example_inputs=(x,), update=tt.TaskAdaptive())
    assert adaptive.metadata["adaptive"]["full_macs"] == macs["step"] - macs["predict"]
