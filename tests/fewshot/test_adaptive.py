"""Task-adaptive libraries: Fisher, selection and installation as parts of an adaptation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.fewshot.small import SIZE, digit_task, small_backbone
from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.fewshot.methods import prediction_bytes
from tvm_tinytrain.fewshot.reference import adapt_reference
from tvm_tinytrain.micro.in_process import InProcess

pytestmark = pytest.mark.host_compiler


@pytest.fixture(scope="module")
def library() -> Iterator[InProcess]:
    module = tt.build(
        small_backbone(), "host", example_inputs=(torch.zeros(1, 3, SIZE, SIZE),), loss=tt.Prototypical(),
        optimizer=tt.Adam(0.5), update=tt.TaskAdaptive(candidates=7), budget=tt.Budget(compute=0.2), name="adaptive",
    )  # fmt: skip
    with InProcess(module) as loaded:
        yield loaded


def test_selected_rows_are_trained_as_pytorch_trains_them(library: InProcess) -> None:
    support, labels, _, _ = digit_task()
    library.init()
    result = library.adapt(support, labels, iterations=20, lr=1e-3, seed=5)
    plan = result.plan
    assert plan is not None and len(plan) >= 1 and result.fisher is not None
    assert set(result.fisher) == set(range(6, 13)) and set(plan) <= set(result.fisher)
    for update in plan.layers:  # the channels of greatest potential
        potential = result.fisher[update.layer]
        others = np.delete(potential, update.outputs)
        assert potential[list(update.outputs)].min() >= others.max(initial=0.0)
    model = small_backbone()
    units = model.conv_units()
    parameters, masks = [], []
    for update in plan.layers:
        conv = units[update.layer].conv
        rows = torch.zeros(conv.out_channels)
        rows[list(update.outputs)] = 1.0
        parameters += [conv.weight, conv.bias]
        masks += [rows.reshape(-1, 1, 1, 1), rows]
    drawn = {"first": True}

    def skip_first(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from tvm_tinytrain.adaptation import DiffAugment

        if drawn.pop("first", False):  # the draw of the Fisher pass
            DiffAugment()(samples, rng)
        return DiffAugment()(samples, rng)

    losses = adapt_reference(
        model,
        support,
        labels,
        parameters=parameters,
        masks=masks,
        iterations=20,
        lr=1e-3,
        seed=5,
        queries=skip_first,
    )
    np.testing.assert_allclose(result.losses, losses, rtol=2e-3)


def test_fisher_sees_every_sample_whatever_an_iteration_takes(library: InProcess) -> None:
    support, labels, _, _ = digit_task()
    library.init()
    every, few = (
        library.adapt(support, labels, iterations=1, seed=2, queries_per_iteration=q) for q in (None, 2)
    )
    assert every.fisher == few.fisher and every.plan == few.plan
    assert every.losses != few.losses


def test_adapting_again_starts_from_the_network(library: InProcess) -> None:
    support, labels, _, _ = digit_task()
    library.init()
    first = library.adapt(support, labels, iterations=3, seed=1)
    again = library.adapt(support, labels, iterations=3, seed=1)
    assert first.losses == again.losses and first.plan == again.plan


def test_a_given_plan_is_installed(library: InProcess) -> None:
    support, labels, _, _ = digit_task()
    library.init()
    plan = tt.UpdatePlan.from_channels({11: [1, 5, 23], 12: [0, 31]})
    result = library.adapt(support, labels, iterations=2, plan=plan)
    assert result.plan == plan and result.fisher is None
    with pytest.raises(PlanError) as caught:
        library.adapt(support, labels, plan=tt.UpdatePlan.from_channels({12: [32]}))
    assert "layer 12, channel 32" in str(caught.value)


def test_a_budget_that_nothing_fits_is_named(library: InProcess) -> None:
    support, labels, _, _ = digit_task()
    library.init()
    options = library.read("options")
    options[1:3] = (1, 0)  # one multiply-accumulate
    library.write("options", options)
    with pytest.raises(BudgetError) as caught:
        library.adapt(support, labels)
    assert "no channel fits" in str(caught.value)
    library.init()


def test_ctrl_c_between_samples(library: InProcess) -> None:
    support, labels, _, _ = digit_task()
    library.init()
    original, calls = library.call, 0

    def call(entry: str) -> None:
        nonlocal calls
        original(entry)
        calls += entry == "accumulate"
        if calls == 2:
            calls += 1
            raise KeyboardInterrupt

    library.call = call  # type: ignore[method-assign]
    try:
        result = library.adapt(support, labels)
    finally:
        del library.call
    untouched = library.adapt(support, labels, iterations=0).classifier.prototypes
    np.testing.assert_array_equal(result.classifier.prototypes, untouched)
    assert result.interrupted and result.losses == ()


def test_prediction_takes_the_same_bytes_whatever_is_trained() -> None:
    """Vectors of three floats take sixteen bytes of an arena."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()
    inputs, loss = (torch.zeros(1, 3, 6, 6),), tt.Prototypical()
    found = {
        prediction_bytes(
            tt.build(
                net, "host", example_inputs=inputs, loss=loss, update=update, optimizer=rule, accumulate=True
            ).metadata
        )
        for update in (tt.FullTrain(), tt.LastLayer())
        for rule in (tt.Adam(), tt.SGD())
    }
    assert len(found) == 1
