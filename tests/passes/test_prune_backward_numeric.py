"""PruneBackward: the gradients of a plan are the rows of the full gradients, to the last bit."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
import tvm

from tests.passes.helpers import Machine, derived, gradient_names, label, lowered
from tests.passes.networks import Mixed, Twice, sample, seeded
from tvm_tinytrain.config import CrossEntropy
from tvm_tinytrain.passes.append_loss import AppendLoss
from tvm_tinytrain.passes.derive_backward import DeriveBackward
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.prune_backward import PruneBackward, full_update
from tvm_tinytrain.passes.rewriting import bindings, callee
from tvm_tinytrain.passes.state import Layer, get_layers
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan


def run(mod: tvm.IRModule, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    _, *grads = Machine(mod).run("step", sample(*shape).numpy(), label(2))
    return dict(zip(gradient_names(mod), grads, strict=True))


def random_update(layer: Layer, rng: random.Random) -> LayerUpdate:
    def some(count: int) -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(count), rng.randint(1, count))))

    weight, bias = rng.choice([(True, True), (True, False), (layer.bias is None, layer.bias is not None)])
    return LayerUpdate(layer.id, some(layer.channels), rng.choice([None, some(layer.inputs)]), weight, bias)


@pytest.mark.parametrize("make", [Mixed, Twice], ids=lambda m: m.__name__)
def test_random_plans_give_rows_of_the_full_gradient(make: type) -> None:
    rng = random.Random(7)
    mod = derived(seeded(make), sample(*make.shape))
    layers, full = get_layers(mod), run(mod, make.shape)
    for _ in range(3):
        chosen = rng.sample(layers, rng.randint(1, len(layers)))
        plan = UpdatePlan(tuple(random_update(layer, rng) for layer in chosen))
        pruned = PruneBackward(plan)(mod)
        owners = {name: layer for layer in chosen for name in (layer.weight, layer.bias) if name}
        for name, grad in run(pruned, make.shape).items():
            update = plan[owners[name].id]
            expected = full[name][list(update.outputs)]
            if update.inputs is not None and name == owners[name].weight:
                expected = expected[:, list(update.inputs)]
            np.testing.assert_array_equal(grad, expected, err_msg=f"{name} {plan.to_json()}")


def test_pruning_all_but_some_is_deriving_only_these() -> None:
    """The graph too: the same calls with the same shapes, in whatever order their names count."""
    net, x = seeded(Mixed), sample(*Mixed.shape)
    base = AppendLoss(CrossEntropy())(lowered(net, x))
    layers = get_layers(base)[2:4]
    names = [n for layer in layers for n in (layer.weight, layer.bias) if n]
    derived_only = DeriveBackward(names)(base)
    pruned = PruneBackward(UpdatePlan(tuple(full_update(layer) for layer in layers)))(DeriveBackward()(base))
    assert gradient_names(pruned) == json.loads(str(derived_only["step"].attrs["tt.gradients"]))
    clean = tvm.relax.transform.DeadCodeElimination(["predict", "step"])(derived_only)
    assert kernels_called(pruned) == kernels_called(clean)
    left, right = run(pruned, Mixed.shape), run(derived_only, Mixed.shape)
    for name in names:
        np.testing.assert_array_equal(left[name], right[name])


def kernels_called(mod: tvm.IRModule) -> Counter[str]:
    """How often `step` calls a kernel of each kind and specification."""
    called = [mod[gv] for b in bindings(mod["step"]) if (gv := callee(b.value)) is not None]
    return Counter(f"{kernel_kind(kernel)} {kernel_spec(kernel)}" for kernel in called)
