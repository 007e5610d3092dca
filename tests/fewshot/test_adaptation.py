"""A whole adaptation by compiled code against PyTorch, draw by draw the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.fewshot.small import SIZE, digit_task, small_backbone
from tvm_tinytrain.adaptation import DiffAugment, Progress, adapt, learn
from tvm_tinytrain.errors import PlanError, ShapeError
from tvm_tinytrain.fewshot.protonet import prototypical_logits
from tvm_tinytrain.fewshot.reference import adapt_reference
from tvm_tinytrain.micro.in_process import InProcess

pytestmark = pytest.mark.host_compiler
EXAMPLE = (torch.zeros(1, 3, SIZE, SIZE),)
STEPS, RATE = 40, 5e-4


@pytest.fixture(scope="module")
def full() -> Iterator[InProcess]:
    module = tt.build(
        small_backbone(), "host", example_inputs=EXAMPLE, loss=tt.Prototypical(), optimizer=tt.Adam(0.5),
        accumulate=True, name="small",
    )  # fmt: skip
    with InProcess(module) as library:
        yield library


@pytest.mark.parametrize("loss", [tt.Prototypical(), tt.Prototypical("euclidean", 0.5, False)])
def test_forty_steps_of_adam_end_where_pytorch_ends(full: InProcess, loss: tt.Prototypical) -> None:
    support, labels, queries, _ = digit_task()
    full.init()
    result = full.adapt(support, labels, iterations=STEPS, lr=RATE, loss=loss, seed=3)
    model = small_backbone()
    losses = adapt_reference(model, support, labels, iterations=STEPS, lr=RATE, loss=loss, seed=3)
    np.testing.assert_allclose(result.losses, losses, rtol=5e-3, atol=1e-3)
    expected = {n.replace(".", "_"): p.detach().numpy() for n, p in model.named_parameters()}
    difference = np.concatenate([(full.read(n).reshape(e.shape) - e).ravel() for n, e in expected.items()])
    assert np.linalg.norm(difference) <= 1e-3 * np.linalg.norm(
        np.concatenate([e.ravel() for e in expected.values()])
    )
    with torch.no_grad():
        scores = prototypical_logits(
            model(torch.from_numpy(support)), torch.from_numpy(labels), model(torch.from_numpy(queries)), loss
        )
    agree = result.classify(full, queries) == scores.argmax(dim=1).numpy()
    assert agree.mean() >= 0.995


def test_adaptation_helps(full: InProcess) -> None:
    support, labels, queries, query_labels = digit_task(shots=5, seed=1)
    full.init()
    before = full.adapt(support, labels, iterations=0)
    assert before.losses == () and before.plan is None
    plain = np.mean(before.classify(full, queries) == query_labels)
    full.init()
    adapted = np.mean(full.adapt(support, labels, lr=3e-3).classify(full, queries) == query_labels)
    assert adapted > plain + 0.05


def test_labels_may_be_any_integers(full: InProcess) -> None:
    support, labels, queries, _ = digit_task()
    full.init()
    first = full.adapt(support, labels, iterations=2).classify(full, queries)
    full.init()
    named = np.array([40, -3, 12, 99, 7])  # ascending order of the names is another one
    renamed = full.adapt(support, named[labels], iterations=2).classify(full, queries)
    assert np.mean(renamed == named[first]) >= 0.99


def test_progress_ends_an_adaptation(full: InProcess) -> None:
    support, labels, _, _ = digit_task()
    full.init()
    seen: list[Progress] = []

    def stop_at_three(progress: Progress) -> bool:
        seen.append(progress)
        return progress.iteration < 3

    result = full.adapt(support, labels, progress=stop_at_three)
    assert result.interrupted and len(result.losses) == 3 and seen[-1].iterations == 40
    full.init()
    assert full.adapt(support, labels, iterations=3).losses == result.losses


def test_ctrl_c_drops_the_unfinished_iteration(full: InProcess) -> None:
    support, labels, _, _ = digit_task()
    full.init()
    full.adapt(support, labels, iterations=2)
    kept = full.read("mix_conv_weight")
    full.init()
    calls = 0

    def source(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nonlocal calls
        calls += 1
        return tt_augment(samples, rng)

    original = full.call

    def call(entry: str) -> None:
        original(entry)
        if calls == 3 and entry == "accumulate":
            raise KeyboardInterrupt

    full.call = call  # type: ignore[method-assign]
    try:
        result = full.adapt(support, labels, queries=source)
    finally:
        del full.call
    assert result.interrupted and len(result.losses) == 2
    assert np.array_equal(full.read("mix_conv_weight"), kept)
    assert not full.read("g_mix_conv_weight").any()


def tt_augment(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from tvm_tinytrain.adaptation import DiffAugment

    return DiffAugment()(samples, rng)


def test_fewer_pseudo_queries_than_samples(full: InProcess) -> None:
    support, labels, _, _ = digit_task()
    full.init()
    sizes: list[int] = []

    def source(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        sizes.append(len(samples))
        return samples

    full.adapt(support, labels, iterations=2, queries=source, queries_per_iteration=6)
    assert sizes == [6, 6]


def test_what_does_not_fit_is_refused(full: InProcess) -> None:
    support, labels, _, _ = digit_task()
    with pytest.raises(ShapeError) as caught:
        full.adapt(support[:, :, :8], labels)
    assert "resize the samples" in str(caught.value)
    with pytest.raises(ShapeError) as caught:
        full.adapt(support, labels[:-1])
    assert "one integer label for each sample" in str(caught.value)
    with pytest.raises(PlanError) as refused:
        full.adapt(support, labels, lr=-1.0)
    assert "0 means no training" in str(refused.value)
    with pytest.raises(ShapeError) as caught:
        full.adapt(support, labels, queries=lambda samples, rng: samples[1:])
    assert "pseudo-queries" in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries_per_iteration": 2.5},
        {"queries_per_iteration": float("nan")},
        {"queries_per_iteration": True},
        {"queries_per_iteration": "3"},
        {"loss": "cosine"},
        {"loss": tt.CrossEntropy()},
        {"loss": tt.Prototypical},
        {"progress": 3},
        {"queries": DiffAugment},
        {"fisher_through_prototypes": "no"},
    ],
)
def test_an_option_that_none_can_be_is_refused_before_anything_is_trained(
    full: InProcess, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task-adaptive library would have lost what it had learnt by then."""
    support, labels, _, _ = digit_task()
    monkeypatch.setattr(full, "call", None)
    with pytest.raises(PlanError, match=f"^adapt: {next(iter(wrong))}: found .*; allowed "):
        full.adapt(support, labels, iterations=1, **wrong)


def test_labels_that_no_int64_holds_are_refused(full: InProcess) -> None:
    """2^63 + 1 would have been told as -2^63 + 1."""
    support, _, _, _ = digit_task()
    with pytest.raises(PlanError, match="labels: found 9223372036854775809; allowed integers of 64 bits"):
        full.adapt(support[:2], np.array([2**63 + 1, 2], np.uint64), iterations=0)


@pytest.mark.parametrize("train", [adapt, learn])
def test_what_is_no_loaded_library_is_refused(train: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    module = tt.build(net, "host", example_inputs=(torch.zeros(1, 4),), name="plain")
    for wrong, found in ((None, "NoneType"), (module, "TrainModule")):
        with pytest.raises(PlanError, match=f"library: found {found}; allowed a loaded library; .*InProcess"):
            train(wrong, np.zeros((2, 4), np.float32), np.array([0, 1]))


def test_a_library_for_another_loss_is_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    module = tt.build(net, "host", example_inputs=(torch.zeros(1, 4),), name="plain")
    with InProcess(module) as library, pytest.raises(PlanError) as caught:
        library.adapt(np.zeros((2, 4), np.float32), np.array([0, 1]))
    assert "build it with loss=Prototypical(), accumulate=True" in str(caught.value)
