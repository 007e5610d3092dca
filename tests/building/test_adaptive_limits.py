"""What a task-adaptive library's tables and arena can hold: refused when it is built, and true to the last byte on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import tvm_tinytrain as tt
from tests.building.adaptive_net import build, install, samples
from tests.compiled import loaded
from tvm_tinytrain import adaptive_library
from tvm_tinytrain.errors import PlanError, TransportError
from tvm_tinytrain.selection import Budgets, TableAccounting

FAST = ("-O0",)


def chain(count: int) -> nn.Sequential:
    """Linear layers of two channels that are nearly the identity."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(count))).eval()
        for layer in net:
            layer.weight.copy_(torch.eye(2) + 0.05 * torch.randn(2, 2))  # type: ignore[operator]
    return net


@pytest.mark.host_compiler
def test_candidates_of_both_words_of_the_mask_train_as_pytorch_does() -> None:
    net, row = chain(36), torch.ones(1, 2)
    update = tt.TaskAdaptive(candidates=35)
    options = {"optimizer": tt.SGD(0.1), "accumulate": False, "memory": tt.MemoryOptions.plain()}
    module = tt.build(net, "host", example_inputs=(row,), update=update, **options)  # type: ignore[arg-type]
    with loaded(module, cflags=FAST) as library:
        install(library, module, {1: [1], 32: [0], 33: [0, 1], 35: [0]})
        loss = nn.functional.cross_entropy(net(row), torch.tensor([1]))
        loss.backward()
        assert library.step(row, 1) == pytest.approx(loss.item(), rel=1e-5)
        with torch.no_grad():
            for layer, channels in ((1, [1]), (32, [0]), (33, [0, 1]), (35, [0])):
                for value in (net[layer].weight, net[layer].bias):
                    value[channels] -= 0.1 * value.grad[channels]  # type: ignore[index,union-attr]
        np.testing.assert_allclose(library.predict(row), net(row).detach().numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    "update", [tt.TaskAdaptive(candidates=65), tt.TaskAdaptive(candidates=tuple(range(65)))]
)
def test_more_candidates_than_a_mask_has_bits_are_refused(update: tt.TaskAdaptive) -> None:
    with pytest.raises(PlanError, match="candidates: found 65; allowed 1 to 64"):
        tt.build(chain(66), "host", example_inputs=(torch.ones(1, 2),), update=update)


def test_a_layer_of_more_channels_than_a_table_can_say_is_refused() -> None:
    net = nn.Sequential(nn.Linear(1, 1 << 16), nn.Linear(1 << 16, 1)).eval()
    inputs = (torch.ones(1, 1),)
    with pytest.raises(PlanError, match="channels of layer 0: found 65536; allowed 1 to 65535; leave such"):
        tt.build(net, "host", example_inputs=inputs, loss=tt.MSE(), update=tt.TaskAdaptive(candidates=2))
    assert tt.build(net, "host", example_inputs=inputs, loss=tt.MSE(), update=tt.TaskAdaptive(candidates=1))


@pytest.mark.host_compiler
def test_a_device_selects_within_the_arena_that_it_has() -> None:
    """Not within a memory budget of a few bytes more than the multiple of 8 that an arena is."""
    tables = build(update=tt.TaskAdaptive(candidates=(0,))).metadata["adaptive"]
    least = tables["activation_bytes"][0] + tables["candidates"][0]["channel_bytes"]
    assert least % 8 == 4  # so that one channel fits the budget and not the arena
    for criterion, memory, channels in (
        ("exact", least + 3, 0),
        ("fisher", least, 0),
        ("exact", least + 4, 1),
    ):
        budget = tt.Budget(memory=memory)
        update = tt.TaskAdaptive(criterion=criterion, candidates=(0,), channel_ratio="1/8")  # type: ignore[arg-type]
        module = build(update=update, budget=budget)
        with loaded(module, cflags=FAST) as library:
            library.call("fisher_begin")
            for image, label in samples(3):
                library.step(image, label, "fisher")
            library.call("select")
            assert library.read("plan")[module.metadata["adaptive"]["plan_words"]["rows"]] == channels
        accounting = TableAccounting.from_metadata(module.metadata)
        assert Budgets.of(budget, accounting).memory_bytes == module.metadata["memory"]["arena_bytes"]


@pytest.mark.host_compiler
@pytest.mark.parametrize("criterion", ["exact", "tinytrain"])
def test_a_budget_of_run_time_beyond_the_arena_is_the_arena(criterion: str) -> None:
    least = build(update=tt.TaskAdaptive(candidates=4)).metadata["adaptive"]["activation_bytes"][-1]
    update = tt.TaskAdaptive(criterion=criterion, candidates=4, channel_ratio=1)  # type: ignore[arg-type]
    module = build(update=update, budget=tt.Budget(memory=least + 400))
    plans = []
    with loaded(module, cflags=FAST) as library:
        size = library.view("options")[0]
        for budget in (size, size + 1, 2**31 - 1, -1):  # the last one as unsigned
            library.call("release")
            library.call("fisher_begin")
            for image, label in samples(3):
                library.step(image, label, "fisher")
            library.view("options")[0] = budget
            library.call("select")
            plans.append(library.read("request").tobytes())
    assert any(plans[0]) and plans == plans[:1] * 4


@pytest.mark.host_compiler
def test_bits_behind_the_last_channel_are_no_plan() -> None:
    module = build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(memory=60000))
    channels = sum(c["channels"] for c in module.metadata["adaptive"]["candidates"])
    assert channels % 8
    with loaded(module, cflags=FAST) as library:
        install(library, module, {3: [0]})
        before = library.read("plan")
        library.view("request")[-1] |= 1 << channels % 8
        with pytest.raises(TransportError, match="-4"):
            library.call("install")
        np.testing.assert_array_equal(library.read("plan"), before)


def wide_stem() -> nn.Sequential:
    """An early layer of few weights, whose output the Fisher pass keeps; training keeps only its clamp's mask."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    ).eval()


def early_library(update: tt.TaskAdaptive) -> tt.TrainModule:
    inputs = (torch.zeros(1, 3, 16, 16),)
    return tt.build(wide_stem(), "host", example_inputs=inputs, update=update, optimizer=tt.SGD(0.01))


@pytest.mark.host_compiler
@pytest.mark.parametrize("candidates", [(0,), (0, 1)])
def test_without_a_budget_the_arena_holds_the_fisher_pass_too(candidates: tuple[int, ...]) -> None:
    module = early_library(tt.TaskAdaptive(candidates=candidates))
    tables, size = module.metadata["adaptive"], module.metadata["memory"]["arena_bytes"]
    rows = [c["channels"] * c["channel_bytes"] for c in tables["candidates"]]
    depths = [b + sum(rows[depth:]) for depth, b in enumerate(tables["activation_bytes"])]
    assert depths[-1] == max(depths) and max(depths) <= size < max(depths) + 8
    with loaded(module, cflags=FAST) as library:
        memory = np.full(size + 64 + max(depths), 0xA5, np.uint8)  # what lies behind the arena stays as it is
        start = -memory.ctypes.data % 64
        library.arena = memory[start : start + size]
        library.init()
        library.call("fisher_begin")
        library.step(np.ones((1, 3, 16, 16), np.float32), 1, "fisher")
        library.call("select")
        rows_word = tables["plan_words"]["rows"]
        assert library.read("plan")[rows_word : rows_word + len(candidates)].any()
        library.step(np.ones((1, 3, 16, 16), np.float32), 1)
        assert (memory[start + size :] == 0xA5).all()


@pytest.mark.parametrize("budget", [None, 60000])
def test_an_arena_that_its_own_plan_does_not_fit_does_not_leave_the_compiler(
    budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(update=tt.TaskAdaptive(candidates=2), budget=tt.Budget(memory=budget))
    tables = made.metadata["adaptive"]
    least = tables["activation_bytes"][-1] if budget else made.metadata["memory"]["arena_bytes"]
    monkeypatch.setattr(adaptive_library, "arena_bytes", lambda *_: least - 8)
    with pytest.raises(
        PlanError, match=rf"plan memory \(\w+\): the end of .*allowed at most {least - 8 if budget else ''}"
    ):
        build(update=tt.TaskAdaptive(candidates=2), budget=tt.Budget(memory=budget))
