"""Random networks as libraries of this machine: predictions and gradients of PyTorch, gradients of plans as their rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn

from tests.building.random_networks import networks
from tests.passes.helpers import folded, torch_gradients
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.state import Layer
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan

FLAGS = ("-O1",)
TOLERANCE = 1e-5


def accumulated(module: TrainModule, x: Tensor, label: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Gradients of one sample by parameter, and the prediction."""
    with InProcess(module, cflags=FLAGS) as device:
        output = device.predict(x.numpy())
        device.step(x.numpy(), label, "accumulate")
        names = [t["name"] for t in module.metadata["tensors"] if t["role"] == "grad"]
        return {name.removeprefix("g_"): device.read(name) for name in names}, output


def random_plan(layers: tuple[Layer, ...], rng: random.Random) -> UpdatePlan:
    def some(count: int) -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(count), rng.randint(1, count))))

    chosen = rng.sample(layers, rng.randint(1, len(layers)))
    return UpdatePlan(
        tuple(
            LayerUpdate(la.id, some(la.channels), some(la.inputs) if rng.random() < 0.3 else None)
            for la in chosen
        )
    )


def assert_rows(
    found: dict[str, np.ndarray], full: dict[str, np.ndarray], plan: UpdatePlan, layers: Any
) -> None:
    """Every gradient of the plan is rows of a full one, and none is missing."""
    expected = {}
    for layer in (la for la in layers if la.id in plan):
        update = plan[layer.id]
        for name in (layer.weight, layer.bias):
            if name is not None:
                rows = full[name][list(update.outputs)]
                columns = update.inputs is not None and name == layer.weight
                expected[name] = rows[:, list(update.inputs)] if columns else rows
    assert {name.removesuffix("_rows") for name in found} == set(expected)
    for name, grad in found.items():
        want = expected[name.removesuffix("_rows")]
        scale = max(np.linalg.norm(want), 1e-2 * np.linalg.norm(full[name.removesuffix("_rows")]))
        assert np.linalg.norm(grad - want) <= TOLERANCE * scale, name


@pytest.mark.host_compiler
@settings(  # an example takes seconds: no shrinking
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
@given(networks())
def test_random_networks(case: tuple[nn.Module, Tensor, int]) -> None:
    net, x, label = case
    module = build(net, "host", example_inputs=(x,), accumulate=True)
    gradients, output = accumulated(module, x, label)
    reference = folded(net)
    expected = reference.double()(x.double()).detach().numpy()
    assert np.abs(output - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    wanted = {
        f"v{name}": grad for name, grad in torch_gradients(reference, x, label).items()
    }  # 0.weight → v0_weight
    total = np.sqrt(sum(float((g**2).sum()) for g in wanted.values()))
    for name, want in wanted.items():
        error = np.linalg.norm(gradients[name].reshape(want.shape) - want)
        assert error <= TOLERANCE * max(np.linalg.norm(want), 1e-2 * total), f"{name}: {error:.2e}"
    plan = random_plan(module.layers, random.Random(str(x.sum().item())))
    pruned, prediction = accumulated(
        build(net, "host", example_inputs=(x,), accumulate=True, update=plan), x, label
    )
    np.testing.assert_allclose(prediction, output, rtol=1e-5, atol=1e-5)
    assert_rows(pruned, gradients, plan, module.layers)


@pytest.mark.host_compiler
def test_training_reduces_the_loss_as_in_pytorch() -> None:
    """Many steps of momentum on a few samples: the curve, not only the first gradient."""
    from tests.passes.networks import Mixed, sample, seeded
    from tvm_tinytrain.config import SGD

    reference = folded(seeded(Mixed)).double()
    optimizer = torch.optim.SGD(reference.parameters(), 0.01, 0.9)
    module = build(seeded(Mixed), "host", example_inputs=(sample(*Mixed.shape),), optimizer=SGD(0.01, 0.9))
    curves: list[list[float]] = [[], []]
    with InProcess(module, cflags=FLAGS) as device:
        for step in range(40):
            x, label = sample(*Mixed.shape, seed=step % 4), step % 4
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(reference(x.double()), torch.tensor([label]))
            loss.backward()
            optimizer.step()
            curves[0].append(loss.item())
            curves[1].append(device.step(x.numpy(), label))
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-3, atol=1e-4)
    assert sum(curves[1][-4:]) < 0.8 * sum(curves[1][:4])
