"""Task-adaptive libraries: Fisher potentials, selection, training and the cache of the frozen prefix, on the host."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.building.adaptive_net import CLASSES, build, install, network, samples
from tests.compiled import loaded
from tvm_tinytrain.errors import BudgetError, TransportError
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.selection import Budgets, FisherMap, select, squared_norms
from tvm_tinytrain.selection.table_accounting import TableAccounting

pytestmark = pytest.mark.host_compiler
FAST = ("-O1",)  # where a library is compiled for one test, and the compiler is not the point
CHOICES = ({1: [0, 3, 7], 2: [2, 5], 3: [1, 4]}, {0: [1], 3: [0]}, {0: [0, 6], 1: [2, 6], 3: [2]})


class Permuted(torch.nn.Sequential):
    """Layers over the channels of an image, which stand last there."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def module() -> tt.TrainModule:
    return build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(memory=60000))


def measured(library: InProcess) -> None:
    library.call("fisher_begin")
    for image, label in samples(5):
        library.step(image, label, "fisher")


def test_fisher_potentials_are_those_of_pytorch(module: tt.TrainModule) -> None:
    net = network()
    seen: dict[int, torch.Tensor] = {}
    expected = {i: np.zeros(n) for i, n in ((2, 8), (3, CLASSES))}

    def keep(layer: int) -> object:
        def hook(_: object, __: object, out: torch.Tensor) -> None:
            out.retain_grad()
            seen[layer] = out

        return hook

    net.project.register_forward_hook(keep(2))  # type: ignore[arg-type]
    net.head.register_forward_hook(keep(3))  # type: ignore[arg-type]
    for image, label in samples(5):
        torch.nn.functional.cross_entropy(net(torch.from_numpy(image)), torch.tensor([label])).backward()
        for layer, value in seen.items():
            product = (value * value.grad).reshape(1, value.shape[1], -1).sum(-1)[0]
            expected[layer] += (product**2).detach().numpy()
    with loaded(module) as library:
        measured(library)
        for layer, potentials in expected.items():
            np.testing.assert_allclose(library.read(f"delta_{layer}"), potentials, rtol=1e-4)


def test_potentials_of_a_linear_layer_over_an_image_count_its_bias() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem, rows, head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 2), torch.nn.Linear(2, 3)
    net = torch.nn.Sequential(
        stem, Permuted(rows), torch.nn.Flatten(2), torch.nn.AvgPool1d(36), torch.nn.Flatten(), head
    )
    x, seen = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8), []
    module = tt.build(net, "host", example_inputs=(x,), update=tt.TaskAdaptive(candidates=2))
    rows.register_forward_hook(lambda _, __, out: (out.retain_grad(), seen.append(out))[1])
    torch.nn.functional.cross_entropy(net(x), torch.tensor([1])).backward()
    expected = (seen[0] * seen[0].grad).sum((0, 1, 2)) ** 2
    with loaded(module, cflags=FAST) as library:
        library.call("fisher_begin")
        library.step(x.numpy(), 1, "fisher")
        np.testing.assert_allclose(library.read("delta_1"), expected.detach(), rtol=1e-4)


@pytest.mark.parametrize("channels", CHOICES)
def test_an_installed_plan_trains_as_a_fixed_library_does(
    module: tt.TrainModule, channels: dict[int, list[int]]
) -> None:
    fixed = build(update=tt.UpdatePlan.from_channels(channels), accumulate=True)
    with loaded(module) as adaptive, loaded(fixed) as reference:
        install(adaptive, module, channels)
        for _ in range(3):
            for image, label in samples(4):
                assert adaptive.step(image, label, "accumulate") == pytest.approx(
                    reference.step(image, label, "accumulate"), rel=1e-6
                )
            adaptive.call("apply")
            reference.call("apply")
        image, _ = samples(1)[0]
        np.testing.assert_allclose(adaptive.predict(image), reference.predict(image), rtol=1e-5, atol=1e-6)
        assert (
            np.abs(adaptive.predict(image) - network()(torch.from_numpy(image)).detach().numpy()).max() > 1e-3
        )


@pytest.mark.parametrize("wanted", [0, 4])
@pytest.mark.parametrize("channels", CHOICES)
def test_the_cached_prefix_changes_nothing(
    module: tt.TrainModule, channels: dict[int, list[int]], wanted: int
) -> None:
    words = module.metadata["adaptive"]["plan_words"]
    with loaded(module) as plain, loaded(module) as cached:
        cached.view("options")[-1] = wanted
        for library in (plain, cached):
            install(library, module, channels)
        assert cached.read("plan")[words["cache_point"]] == (wanted > 0)
        assert cached.read("plan")[words["cache_slots"]] >= 4
        for iteration in range(3):
            for slot, (image, label) in enumerate(samples(4)):
                loss = plain.step(image, label, "accumulate")
                cached.write("slot", np.array([slot], np.int32))
                if iteration == 0:
                    assert cached.step(image, label, "accumulate_store") == loss
                    continue
                cached.write("label", np.array([label], np.int32))
                cached.view("x")[...] = np.nan  # the input is not read
                cached.call("accumulate_cached")
                assert float(cached.read("loss")[0]) == loss
            plain.call("apply")
            cached.call("apply")
        cached.write("slot", np.array([2], np.int32))
        cached.call("predict_cached")
        np.testing.assert_array_equal(cached.read("output"), plain.predict(samples(4)[2][0]))


@pytest.mark.parametrize(
    ("criterion", "spare"),
    [("tinytrain", 1200), ("exact", 400), ("exact", 6000), ("random", 1200), ("l2", 1200)],
)
def test_the_device_selects_as_the_host(module: tt.TrainModule, criterion: str, spare: int) -> None:
    options = tt.TaskAdaptive(criterion=criterion, candidates=4)
    frozen = module.metadata["adaptive"]["activation_bytes"][-1]
    budget = tt.Budget(memory=frozen + spare, compute=0.6)
    made = build(update=options, budget=budget)
    accounting = TableAccounting.from_metadata(made.metadata)
    with loaded(made, cflags=FAST) as library:
        measured(library)
        layers = [entry["layer"] for entry in made.metadata["adaptive"]["candidates"]]
        potentials = FisherMap({layer: library.read(f"delta_{layer}") for layer in layers})
        if criterion == "l2":
            potentials = squared_norms(norms_of(layers))
        expected = select(accounting, Budgets.of(budget, accounting), potentials, options)
        library.call("select")
        plan = library.read("plan")
    counts = dict(zip(layers, plan[3 : 3 + len(layers)].tolist(), strict=True))
    assert {layer: k for layer, k in counts.items() if k} == {
        u.layer: len(u.outputs) for u in expected.plan.layers
    }
    assert plan[made.metadata["adaptive"]["plan_words"]["end"]] <= made.metadata["memory"]["arena_bytes"]
    assert expected.macs <= 0.6 * made.metadata["adaptive"]["full_macs"]


def norms_of(layers: list[int]) -> dict[int, np.ndarray]:
    """Weights of the network's layers."""
    net = network()
    weights = [net.stem.weight, net.depthwise.weight, net.project.weight, net.head.weight]
    return {i: weights[i].detach().numpy() for i in layers}


def test_norms_are_known_where_the_library_was_built_for_them(module: tt.TrainModule) -> None:
    with loaded(module) as library:
        library.view("options")[3] = 4  # l2
        with pytest.raises(TransportError, match="-4"):
            library.call("select")


def test_a_step_is_accumulate_and_apply(module: tt.TrainModule) -> None:
    with loaded(module) as one, loaded(module) as two:
        for library in (one, two):
            install(library, module, CHOICES[0])
        for image, label in samples(3):
            assert one.step(image, label) == two.step(image, label, "accumulate")
            two.call("apply")
        np.testing.assert_array_equal(one.arena, two.arena)


def test_an_empty_plan_is_the_frozen_network(module: tt.TrainModule) -> None:
    image, label = samples(1)[0]
    with loaded(module) as library:
        install(library, module, {})
        words = module.metadata["adaptive"]["plan_words"]
        assert library.read("plan")[words["depth"]] == 4
        assert library.read("plan")[words["cache_slots"]] == 0
        expected = network()(torch.from_numpy(image)).detach().numpy()
        np.testing.assert_allclose(library.predict(image), expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(TransportError, match="-10"):
            library.step(image, label, "accumulate")


def test_a_selection_that_nothing_fits_is_empty_and_no_error() -> None:
    made = build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(compute=1e-6))
    with loaded(made, cflags=FAST) as library:
        measured(library)
        library.call("select")
        assert not library.read("request").any()
        assert library.read("plan")[0] == 4
        library.predict(samples(1)[0][0])


def test_calls_out_of_order_are_refused(module: tt.TrainModule) -> None:
    image, label = samples(1)[0]
    with loaded(module) as library:
        with pytest.raises(TransportError, match="-10"):
            library.step(image, label, "accumulate")
        install(library, module, {3: [0]})
        with pytest.raises(TransportError, match="-10"):
            library.step(image, label, "fisher")
        library.call("release")
        with pytest.raises(TransportError, match="-10"):
            library.step(image, label, "fisher")  # fisher_begin is first


def test_potentials_are_gone_after_a_prediction(module: tt.TrainModule) -> None:
    """It uses the same bytes: a selection by what it left there would be one by noise."""
    image, label = samples(1)[0]
    with loaded(module) as library:
        with pytest.raises(TransportError, match="-10"):
            library.call("select")
        measured(library)
        library.predict(image)
        for call in (lambda: library.step(image, label, "fisher"), lambda: library.call("select")):
            with pytest.raises(TransportError, match="-10"):
                call()
        measured(library)
        library.call("select")
        assert library.read("request").any()


@pytest.mark.parametrize(("word", "value"), [(3, 256), (3, 7), (5, 256), (5, 2)])
def test_options_of_no_meaning_are_refused(module: tt.TrainModule, word: int, value: int) -> None:
    with loaded(module) as library:
        measured(library)
        library.view("options")[word] = value
        with pytest.raises(TransportError, match="-4"):
            library.call("select")
        assert not library.read("request").any()


def saved(library: InProcess) -> tuple[int, object]:
    """(tt_model_save_size, the checkpoint that tt_model_save writes or its status)."""
    code, arena = library._library, ctypes.c_void_p(library.arena.ctypes.data)
    code.tt_model_save_size.restype = ctypes.c_size_t
    size = code.tt_model_save_size(arena)
    buffer = (ctypes.c_ubyte * max(size, 1))()
    status = code.tt_model_save(arena, buffer, ctypes.c_size_t(size))
    return size, status or buffer


def test_an_arena_without_init_is_refused(module: tt.TrainModule) -> None:
    with loaded(module) as library:
        install(library, module, CHOICES[0])
        size, checkpoint = saved(library)
        assert size
        for left in (0xFF, 0):  # erased; static, as the header has it
            library.arena[:] = left
            for entry in library.entries[1:]:
                with pytest.raises(TransportError, match="-10"):
                    library.call(entry)
            assert saved(library) == (0, -10)
            arena = ctypes.c_void_p(library.arena.ctypes.data)
            assert library._library.tt_model_load(arena, checkpoint, ctypes.c_size_t(size)) == -10
            assert (library.arena == left).all()


@pytest.mark.parametrize("again", ["install", "select"])
def test_a_new_plan_begins_with_a_new_optimizer(module: tt.TrainModule, again: str) -> None:
    """Adam's moments are cleared, so its corrections for their beginning are too."""
    image, label = samples(1)[0]
    with loaded(module) as library, loaded(module) as fresh:
        install(library, module, CHOICES[0])
        for _ in range(5):
            library.step(image, label, "step")
        assert library.read("hyper")[1] > 0
        library.call("release")
        for each in (library, fresh):
            if again == "select":
                measured(each)
                each.call("select")
            else:
                install(each, module, CHOICES[1])
        np.testing.assert_array_equal(library.read("hyper"), fresh.read("hyper"))
        assert library.step(image, label, "step") == fresh.step(image, label, "step")
        np.testing.assert_array_equal(library.predict(image), fresh.predict(image))


def test_a_plan_that_does_not_fit_changes_nothing(module: tt.TrainModule) -> None:
    frozen = module.metadata["adaptive"]["activation_bytes"][-1]
    made = build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(memory=frozen + 100))
    with loaded(made, cflags=FAST) as library:
        before = library.read("plan")
        with pytest.raises(TransportError, match="-2"):
            install(library, made, {0: list(range(8)), 1: list(range(8)), 2: list(range(8))})
        np.testing.assert_array_equal(library.read("plan"), before)


def test_a_budget_below_the_frozen_network_names_what_is_alive() -> None:
    with pytest.raises(BudgetError, match="live at step"):
        build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(memory=2000))


def test_the_bytes_that_a_budget_lacks_are_enough() -> None:
    """They are those of the entry that needs most: of the Fisher pass here, not of prediction, which comes first."""
    update = tt.TaskAdaptive(candidates=4)
    with pytest.raises(BudgetError, match=r"plan memory \(fisher\)") as caught:
        build(update=update, budget=tt.Budget(memory=1))
    least = int(str(caught.value.found).split()[0])
    assert build(update=update, budget=tt.Budget(memory=least)).metadata["memory"]["arena_bytes"] == least
    with pytest.raises(BudgetError, match=f"found {least} bytes, 8 over"):
        build(update=update, budget=tt.Budget(memory=least - 8))


def test_what_was_learnt_is_saved_and_loaded_and_damage_is_refused(module: tt.TrainModule) -> None:
    with loaded(module) as trained, loaded(module) as fresh:
        install(trained, module, CHOICES[0])
        for image, label in samples(3):
            trained.step(image, label, "accumulate")
        trained.call("apply")
        size, buffer = saved(trained)
        target = ctypes.c_void_p(fresh.arena.ctypes.data)
        image, _ = samples(1)[0]
        before = fresh.predict(image)
        buffer[size // 2] ^= 1
        assert fresh._library.tt_model_load(target, buffer, ctypes.c_size_t(size)) != 0
        np.testing.assert_array_equal(fresh.predict(image), before)
        buffer[size // 2] ^= 1
        fresh.view("hyper")[1:3] = 0.5  # of a plan before
        assert fresh._library.tt_model_load(target, buffer, ctypes.c_size_t(size)) == 0
        assert not fresh.read("hyper")[1:3].any()
        np.testing.assert_array_equal(fresh.read("request"), trained.read("request"))
        np.testing.assert_array_equal(fresh.predict(image), trained.predict(image))
