"""Training on labels from the host: the calls that a device's own session makes, and nothing that is not there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.building.adaptive_net import CLASSES, SHAPE, build, network
from tests.compiled import loaded
from tvm_tinytrain.errors import PlanError, ShapeError
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.trained_rows import row_places

pytestmark = pytest.mark.host_compiler
SAMPLES, ITERATIONS, RATE = 2 * CLASSES, 4, 0.02


def task() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, class after class."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(SAMPLES, *SHAPE[1:])).astype(np.float32), np.arange(SAMPLES) // 2


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_task_adaptive_library_selects_and_trains(accumulate: bool) -> None:
    update, budget = tt.TaskAdaptive(candidates=4), tt.Budget(memory=60000, compute=0.6)
    images, labels = task()
    order = [*range(0, SAMPLES, 2), *range(1, SAMPLES, 2)]  # classes by turns
    seen: list[tuple[int, float]] = []
    with InProcess(build(update=update, budget=budget, accumulate=accumulate)) as library:
        result = library.learn(
            images, labels, iterations=ITERATIONS, lr=RATE, progress=lambda i, loss: seen.append((i, loss))
        )
        logits = library.predict(images[:1])
        library.init()
        library.view("hyper")[0] = RATE
        library.call("fisher_begin")
        for i in order:
            library.step(images[i][None], labels[i], "fisher")
        assert result.fisher is not None
        np.testing.assert_array_equal(library.read("delta_2"), result.fisher.layers[2])
        library.call("select")
        losses = []
        for _ in range(ITERATIONS):
            train = "accumulate" if accumulate else "step"
            losses.append(np.mean([library.step(images[i][None], labels[i], train) for i in order]))
            if accumulate:
                library.call("apply")
        np.testing.assert_array_equal(library.predict(images[:1]), logits)
        again = library.learn(images, labels, iterations=ITERATIONS, lr=RATE, plan=result.plan)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-6)
    assert [i for i, _ in seen] == [1, 2, 3, 4] and tuple(loss for _, loss in seen) == result.losses
    assert result.losses[-1] < result.losses[0]
    assert (again.losses, again.plan, again.fisher) == (result.losses, result.plan, None)


@pytest.mark.parametrize("update", [tt.FullTrain(), tt.TaskAdaptive(candidates=4)], ids=["fixed", "adaptive"])
def test_ctrl_c_leaves_no_gradient_behind(update: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an unfinished pass: the next training's first step would take them for its own."""
    images, labels = task()
    with loaded(build(update=update, accumulate=True)) as library:
        call, entries = library.call, ["accumulate"] * (SAMPLES + 3)

        def until_interrupted(entry: str) -> None:
            call(entry)
            if entry == "accumulate" and entries.pop() and not entries:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(library, "call", until_interrupted)
            with pytest.raises(KeyboardInterrupt):
                library.learn(images, labels, iterations=2, lr=RATE)
        if isinstance(update, tt.FullTrain):
            left = [library.read(name) for name, t in library.tensors.items() if t.role == "grad"]
        else:
            rows = row_places(library, library.metadata)
            places = [place for name, place in rows.items() if name.startswith("g_") and place[1]]
            left = [np.frombuffer(library.read_arena(at, n * size), np.float32) for at, n, size in places]
        assert left and not any(values.any() for values in left)


def test_a_rate_holds_for_its_training_only() -> None:
    """As on the device: the next step takes the library's own rate."""
    images, labels = task()

    def stop(*_: object) -> None:
        raise KeyError

    with loaded(build(update=tt.FullTrain())) as library:
        own = library.read("hyper")[0]
        library.learn(images, labels, iterations=1, lr=RATE)
        assert library.read("hyper")[0] == own != np.float32(RATE)
        assert library.read("hyper")[1] > 0.0  # the optimizer goes on
        with pytest.raises(KeyError):
            library.learn(images, labels, iterations=1, lr=RATE, progress=stop)
        assert library.read("hyper")[0] == own


def test_what_does_not_train_labels_is_refused() -> None:
    images, labels = task()
    with InProcess(build(update=tt.LastLayer())) as library:
        assert library.learn(images, labels, iterations=0).losses == ()
        for wrong in (
            {"iterations": -1},
            {"iterations": 2.5},
            {"lr": float("nan")},
            {"lr": float("inf")},
            {"lr": "1"},
        ):
            with pytest.raises(PlanError, match=r"^learn: (iterations|lr): .*0 or more"):
                library.learn(images, labels, **wrong)
        with pytest.raises(ShapeError, match="one array of numbers"):
            library.learn([images[0], images[1][:1]], labels[:2])
        with pytest.raises(ShapeError, match="one integer label for each sample"):
            library.learn(images, labels[1:])
        with pytest.raises(ShapeError, match="float64"):
            library.learn(images, labels / 2)
        for strange in (labels - 1, labels + 1):
            found = rf"labels: found {strange.min()} to {strange.max()}; allowed 0 to {CLASSES - 1}"
            with pytest.raises(PlanError, match=found):
                library.learn(images, strange)
        fixed = library.learn(images, labels, iterations=2, lr=RATE)
        assert fixed.plan is None and fixed.losses[1] < fixed.losses[0]
    prototypes = tt.build(
        network(), "host", example_inputs=(torch.zeros(SHAPE),), loss=tt.Prototypical(), name="p"
    )
    with InProcess(prototypes) as library, pytest.raises(PlanError, match="a loss of prototypes"):
        library.learn(images, labels)


@pytest.mark.parametrize("loss", [tt.MSE(), tt.BinaryCrossEntropy()])
def test_float_targets_are_what_the_output_should_be(loss: tt.config.Loss) -> None:
    """A class number is no target of several outputs: it used to fill all of them."""
    images, classes = task()
    targets = np.random.default_rng(2).uniform(size=(SAMPLES, CLASSES)).astype(np.float32)
    with loaded(build(update=tt.LastLayer(), loss=loss, accumulate=True), cflags=("-O1",)) as library:
        result = library.learn(images, targets, iterations=2, lr=RATE)
        np.testing.assert_array_equal(library.read("label"), targets[-1:])
        library.init()
        library.view("hyper")[0] = RATE
        losses = [library.step(x, y, "accumulate") for x, y in zip(images, targets, strict=True)]
        assert result.losses[0] == pytest.approx(np.mean(losses)) and result.losses[1] < result.losses[0]
        with pytest.raises(ShapeError, match=rf"numbers\[n, {CLASSES}\].*class numbers are for CrossEntropy"):
            library.learn(images, classes)
        for wrong in (targets[:, :-1], targets[1:], targets + 1j, [[1.0], [1.0, 2.0]]):
            with pytest.raises(ShapeError, match=rf"learn: labels: .*numbers\[n, {CLASSES}\]"):
                library.learn(images, wrong)
        with pytest.raises(PlanError, match="labels: found nan or infinity"):
            library.learn(images, targets * np.float32("nan"))


def test_one_float_target_for_each_sample() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1)).eval()
    module = tt.build(net, "host", example_inputs=(torch.zeros(1, 4),), loss=tt.MSE(), update=tt.FullTrain())
    images = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    with loaded(module, cflags=("-O1",)) as library:
        results = []
        for targets in (images[:, 0], images[:, :1], list(images[:, 0])):
            library.init()
            results.append(library.learn(images, targets, iterations=3, lr=RATE).losses)
    assert results[0] == results[1] == results[2] and results[0][-1] < results[0][0]


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ({"inputs": (2,)}, "found layer 3, some inputs; allowed weights of whole channels"),
        ({"weight": False}, "found layer 3, its bias alone; allowed weights of whole channels"),
    ],
)
def test_a_plan_of_parts_of_channels_is_refused(part: dict[str, Any], found: str) -> None:
    """A library that chooses at run time trains all of a channel: it would train something else than the plan says."""
    images, labels = task()
    plan = tt.UpdatePlan((tt.LayerUpdate(2, (1,)), tt.LayerUpdate(3, (0, 1), **part)))
    with loaded(build(update=tt.TaskAdaptive(candidates=2)), cflags=("-O1",)) as library:
        with pytest.raises(PlanError, match=found):
            library.learn(images, labels, plan=plan)
        assert not library.read("request").any()


def test_a_training_that_diverged_says_so() -> None:
    """A clamp on the device makes zeros of the NaN behind spoilt weights: the loss of the last iteration is a number again."""
    images, labels = task()
    layers = {0: [0, 1], 1: list(range(8))}  # the head, which would show it, stays
    for update, plan in (
        (tt.UpdatePlan.from_channels(layers), None),
        (tt.TaskAdaptive(candidates=4), tt.UpdatePlan.from_channels(layers)),
    ):
        module = build(update=update, accumulate=True)
        with loaded(module, cflags=("-O1",)) as library:
            losses = library.learn(images, labels, iterations=2, lr=RATE, plan=plan).losses
            assert np.isfinite(losses).all()
            seen: list[float] = []
            losses = library.learn(
                images, labels, iterations=3, lr=3e38, plan=plan, progress=lambda _, loss: seen.append(loss)
            ).losses
            assert np.isfinite(seen[-1]) and np.isnan(losses[-1])
