"""Task-adaptive libraries that keep no gradients: ``step`` applies each where it is made, one sample per step."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.building.adaptive_net import SHAPE, install, network, samples
from tests.compiled import loaded
from tvm_tinytrain.config import MemoryOptions, Optimizer
from tvm_tinytrain.errors import TransportError
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.trained_rows import read_rows

pytestmark = pytest.mark.host_compiler
CHOICES = ({1: [0, 3, 7], 2: [2, 5], 3: [1, 4]}, {0: [1], 3: [0]}, {0: [0, 6], 1: [2, 6], 3: [2]})
ADAM = tt.Adam(0.01)
NARROW = tt.AdamW(0.01, weight_decay=0.1, state="bfloat16")
NARROWEST = tt.Adam(0.01, weight_decay=0.1, state="int8")


@cache
def build(optimizer: Optimizer, *, accumulate: bool = False, recompute: str = "auto") -> tt.TrainModule:
    return tt.build(
        network(), "host", example_inputs=(torch.zeros(SHAPE),), optimizer=optimizer, update=tt.TaskAdaptive(candidates=4),
        budget=tt.Budget(memory=60000), accumulate=accumulate, memory=MemoryOptions(recompute=recompute),
    )  # fmt: skip


def begin(module: tt.TrainModule, channels: dict[int, list[int]], cached_samples: int = 0) -> InProcess:
    """The library as it was built, with these channels to train."""
    library = loaded(module)
    library.view("options")[-1] = cached_samples
    install(library, module, channels)
    return library


@pytest.mark.parametrize("channels", CHOICES)
@pytest.mark.parametrize("optimizer", [ADAM, NARROW, NARROWEST], ids=lambda o: o.state)
def test_a_step_is_accumulate_and_apply_of_one_sample(
    optimizer: Optimizer, channels: dict[int, list[int]]
) -> None:
    fused, two = build(optimizer), build(optimizer, accumulate=True)
    one, other = begin(fused, channels), begin(two, channels)
    for image, label in samples(6):
        assert one.step(image, label) == other.step(image, label)
    np.testing.assert_array_equal(one.read("hyper"), other.read("hyper"))
    found, wanted = read_rows(one, fused.metadata), read_rows(other, two.metadata)
    assert found.keys() == wanted.keys()
    for name, rows in found.items():
        np.testing.assert_array_equal(rows, wanted[name], err_msg=name)


@pytest.mark.parametrize("channels", CHOICES)
def test_steps_are_those_of_pytorch(channels: dict[int, list[int]]) -> None:
    net = network()
    layers = {i: (n, getattr(net, n)) for i, n in enumerate(("stem", "depthwise", "project", "head"))}
    for i, (_, layer) in layers.items():
        mask = torch.zeros(layer.weight.shape[0])
        mask[channels.get(i, [])] = 1.0
        layer.weight.register_hook(lambda g, m=mask: g * m.reshape(-1, *[1] * (g.ndim - 1)))
        layer.bias.register_hook(lambda g, m=mask: g * m)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    library = begin(build(ADAM), channels)
    for image, label in samples(6):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(image)), torch.tensor([label]))
        loss.backward()
        optimizer.step()
        assert library.step(image, label) == pytest.approx(float(loss.detach()), rel=1e-5)
    trained = read_rows(library, build(ADAM).metadata)
    for i, kept in channels.items():
        name, layer = layers[i]
        rows = layer.weight.detach().numpy()[kept].reshape(len(kept), -1)
        np.testing.assert_allclose(trained[f"{name}_weight_rows"], rows, atol=2e-5)
    image, _ = samples(1)[0]
    wanted = net(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(library.predict(image), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wanted", [0, 4])
@pytest.mark.parametrize("channels", CHOICES)
def test_the_cached_prefix_changes_nothing(channels: dict[int, list[int]], wanted: int) -> None:
    module = build(ADAM)
    library = begin(module, channels)
    losses = [library.step(image, label) for _ in range(3) for image, label in samples(4)]
    hyper, logits = library.read("hyper"), library.predict(samples(4)[2][0])
    library = begin(module, channels, cached_samples=wanted)
    words, plan = module.metadata["adaptive"]["plan_words"], library.read("plan")
    assert plan[words["cache_point"]] == (wanted > 0)
    assert plan[words["cache_slots"]] >= 4
    found = []
    for iteration in range(3):
        for slot, (image, label) in enumerate(samples(4)):
            library.write("slot", np.array([slot], np.int32))
            if iteration == 0:
                found.append(library.step(image, label, "step_store"))
                continue
            library.write("label", np.array([label], np.int32))
            library.view("x")[...] = np.nan  # the input is not read
            library.call("step_cached")
            found.append(float(library.read("loss")[0]))
    assert found == losses
    np.testing.assert_array_equal(library.read("hyper"), hyper)
    library.write("slot", np.array([2], np.int32))
    library.call("predict_cached")
    np.testing.assert_array_equal(library.read("output"), logits)


def test_blocks_computed_twice_read_the_weights_of_the_forward_pass() -> None:
    again = build(ADAM, recompute="lowest")
    assert again.metadata["memory"]["recomputed"]["step"]["segments"] > 0
    twice, plain = begin(again, CHOICES[2]), begin(build(ADAM), CHOICES[2])
    for image, label in samples(4):
        assert twice.step(image, label) == plain.step(image, label)


def test_a_trained_weight_takes_four_bytes_less() -> None:
    fused, two = build(ADAM).metadata, build(ADAM, accumulate=True).metadata
    for one, other in zip(fused["adaptive"]["candidates"], two["adaptive"]["candidates"], strict=True):
        values = one["weights"] // one["channels"] + 1  # and the bias
        assert (one["channel_bytes"], other["channel_bytes"]) == (12 * values + 4, 16 * values + 4)
    assert max(fused["adaptive"]["activation_bytes"]) <= max(two["adaptive"]["activation_bytes"])
    assert not {"accumulate", "apply", "accumulate_store"} & set(fused["entries"])
    assert {"step", "step_store", "step_cached"} <= set(fused["entries"])
    assert (fused["options"]["accumulate"], two["options"]["accumulate"]) == (False, True)
    assert "step_store" not in two["entries"]


def test_a_step_that_is_refused_is_none() -> None:
    image, label = samples(1)[0]
    library = begin(build(ADAM), {})
    with pytest.raises(TransportError, match="-10"):
        library.step(image, label)
    library = begin(build(ADAM), CHOICES[0])
    before = library.read("hyper")
    library.write("slot", np.array([1 << 20], np.int32))
    for entry in ("step_store", "step_cached"):
        with pytest.raises(TransportError, match="-7"):
            library.step(image, label, entry)
    with pytest.raises(TransportError, match="-4"):
        library.step(image, 99)
    np.testing.assert_array_equal(library.read("hyper"), before)
