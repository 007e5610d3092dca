"""Slots of the frozen prefix's cache: what was not stored for the plan that is installed is refused, and changes nothing."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

import tvm_tinytrain as tt
from tests.building.adaptive_net import build, install, samples
from tests.compiled import loaded
from tvm_tinytrain.errors import TransportError
from tvm_tinytrain.micro.in_process import InProcess

pytestmark = pytest.mark.host_compiler
FAST = ("-O1",)
FIRST, SECOND = {2: [0, 1]}, {3: [0, 1]}
CACHED = ("accumulate_cached", "predict_cached")
IMAGE, LABEL = samples(1)[0]


@pytest.fixture(scope="module", params=[0, 60000], ids=["arena", "pool"])
def module(request: pytest.FixtureRequest) -> tt.TrainModule:
    update = tt.TaskAdaptive(candidates=4, cache_bytes=request.param)
    return build(update=update, budget=tt.Budget(memory=60000))


def refused(library: InProcess) -> None:
    """Both entries say that another call is first; neither loss, output, nor rows change."""
    before = library.arena.copy()
    for entry in CACHED:
        with pytest.raises(TransportError, match="status -10"):
            library.call(entry)
    np.testing.assert_array_equal(library.arena, before)


def store(library: InProcess, slot: int) -> float:
    """The loss of a step that stores."""
    library.write("slot", np.array([slot], np.int32))
    return library.step(IMAGE, LABEL, "accumulate_store")


def saved_by(library: InProcess) -> ctypes.Array[ctypes.c_ubyte]:
    """A checkpoint of what is installed."""
    compiled, arena = library._library, ctypes.c_void_p(library.arena.ctypes.data)
    compiled.tt_model_save_size.restype = ctypes.c_size_t
    size = compiled.tt_model_save_size(arena)
    buffer = (ctypes.c_ubyte * size)()
    assert compiled.tt_model_save(arena, buffer, ctypes.c_size_t(size)) == 0
    return buffer


def load(library: InProcess, saved: ctypes.Array[ctypes.c_ubyte]) -> None:
    """Installs what the checkpoint says."""
    arena = ctypes.c_void_p(library.arena.ctypes.data)
    assert library._library.tt_model_load(arena, saved, ctypes.c_size_t(len(saved))) == 0


def test_a_slot_is_taken_where_this_plan_stored_it(module: tt.TrainModule) -> None:
    with loaded(module, cflags=FAST) as library:
        library.arena[:] = 0x01  # what an arena may hold before
        library.init()
        library.write("label", np.array([LABEL], np.int32))
        install(library, module, FIRST)
        refused(library)
        loss = store(library, 1)
        library.call("accumulate_cached")
        assert library.read("loss")[0] == loss
        library.write("slot", np.array([0], np.int32))
        refused(library)
        words = module.metadata["adaptive"]["plan_words"]
        library.write("slot", np.array([library.read("plan")[words["cache_slots"]]], np.int32))
        with pytest.raises(TransportError, match="status -7"):
            library.call("accumulate_cached")


@pytest.mark.parametrize("again", ["install another", "install the same", "select", "load", "init"])
def test_slots_of_an_older_plan_are_empty(module: tt.TrainModule, again: str) -> None:
    with loaded(module, cflags=FAST) as library:
        install(library, module, FIRST)
        store(library, 0)
        if again == "load":
            load(library, saved_by(library))
        elif again == "select":
            library.call("release")
            library.call("fisher_begin")
            library.step(IMAGE, LABEL, "fisher")
            library.call("select")
        else:
            if again == "init":
                library.init()
            install(library, module, SECOND if again == "install another" else FIRST)
        library.write("label", np.array([LABEL], np.int32))
        refused(library)
        loss = store(library, 0)
        library.call("accumulate_cached")
        assert library.read("loss")[0] == loss


def test_the_pool_holds_as_many_samples_as_its_bytes_say() -> None:
    slots = build(update=tt.TaskAdaptive(candidates=4)).metadata["adaptive"]["cache"]["slot_bytes"]
    depth, (least, most) = 2, slots[2]
    made = build(update=tt.TaskAdaptive(candidates=4, cached_samples=3, cache_bytes=3 * most))
    words = made.metadata["adaptive"]["plan_words"]
    with loaded(made, cflags=FAST) as library:
        install(library, made, FIRST)
        plan = library.read("plan")
        assert (plan[words["depth"]], plan[words["cache_point"]], plan[words["cache_slots"]]) == (depth, 1, 3)
        assert least < most


@pytest.mark.parametrize("again", ["install", "select", "load"])
def test_slots_end_below_a_budget_set_at_run_time(module: tt.TrainModule, again: str) -> None:
    """No plan, slot or stored sample touches the arena behind the budget; a pool of its own keeps all its slots."""
    words = module.metadata["adaptive"]["plan_words"]
    pool = module.metadata["adaptive"]["cache"]["pool_bytes"] != 0
    with loaded(module, cflags=FAST) as library:
        install(library, module, FIRST)
        plan = library.read("plan")
        of_depth = module.metadata["adaptive"]["cache"]["slot_bytes"][plan[words["depth"]]]
        slot = of_depth[plan[words["cache_point"]]]
        budget = int(plan[words["end"]]) + 2 * slot + 3
        options = library.read("options")
        options[0] = budget
        library.write("options", options)
        if again == "select":
            library.call("release")
            library.call("fisher_begin")
            library.step(IMAGE, LABEL, "fisher")
        saved = saved_by(library) if again == "load" else None
        library.arena[budget:] = 0xA5
        if saved is not None:
            load(library, saved)
        else:
            library.call(again)
        slots = library.read("plan")[words["cache_slots"]]
        if again != "select":  # it may choose what has larger slots
            assert slots > 2 if pool else slots == 2
        for n in range(slots):
            store(library, n)
        np.testing.assert_array_equal(library.arena[budget:], 0xA5)
