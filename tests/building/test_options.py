"""Targets in all notations, and options: each shows in the library and in its metadata."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from tests.emit.libraries import M7, Small, example, library, small
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.config import (
    MSE,
    SGD,
    Adam,
    AdamW,
    BinaryCrossEntropy,
    Budget,
    CrossEntropy,
    FullTrain,
    LastLayer,
    MemoryOptions,
)
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import TaskAdaptive


def built(target: object = "host", **options: Any) -> TrainModule:
    return build(small(), target, example_inputs=(torch.zeros(1, *Small.shape),), name="small", **options)


@pytest.mark.parametrize(
    "target",
    [
        {"kind": "c", "mcpu": "cortex-m7"},
        tvm.target.Target({"kind": "c", "mcpu": "cortex-m7"}),
        '{"kind": "c", "mcpu": "cortex-m7"}',
    ],
    ids=["dict", "tvm", "json"],
)
def test_notations_of_one_target(target: object) -> None:
    assert built(target, optimizer=SGD(0.125)).files == library(M7).files


@pytest.mark.parametrize("target", ["host", "c", "c -mcpu=cortex-m3", "c -mcpu=cortex-a53"])
def test_targets(target: str) -> None:
    module = built(target)
    assert module.metadata["options"]["target"] == str(module.target)
    assert module.metadata["target"]["mcpu"] == module.target.mcpu
    assert module.files["tt_small.c"]


@pytest.mark.parametrize(
    ("options", "entries", "roles"),
    [
        ({}, ["init", "predict", "step"], {"state": 1}),
        ({"optimizer": SGD(momentum=0.9)}, ["init", "predict", "step"], {"state": 1 + 8}),
        ({"optimizer": AdamW()}, ["init", "predict", "step"], {"state": 1 + 16}),
        ({"accumulate": True}, ["init", "predict", "accumulate", "apply"], {"state": 1, "grad": 8}),
        (
            {"accumulate": True, "optimizer": Adam()},
            ["init", "predict", "accumulate", "apply"],
            {"state": 17, "grad": 8},
        ),
        ({"update": LastLayer()}, ["init", "predict", "step"], {"param": 2}),
    ],
    ids=["sgd", "momentum", "adamw", "accumulate", "accumulate adam", "last layer"],
)
def test_entries_and_tensors(options: dict[str, Any], entries: list[str], roles: dict[str, int]) -> None:
    metadata = built(**options).metadata
    assert metadata["entries"] == entries
    for role, count in roles.items():
        assert sum(t["role"] == role for t in metadata["tensors"]) == count


@pytest.mark.parametrize(
    "loss", [CrossEntropy(0.1), MSE(), BinaryCrossEntropy()], ids=lambda o: type(o).__name__
)
@pytest.mark.host_compiler
def test_losses(loss: Any) -> None:
    module = built(loss=loss)
    target = 2 if isinstance(loss, CrossEntropy) else np.array([[0.0, 1.0, 0.5]], np.float32)
    output = small()(example())
    expected = {
        CrossEntropy: lambda: torch.nn.functional.cross_entropy(
            output, torch.tensor([2]), label_smoothing=0.1
        ),
        MSE: lambda: torch.nn.functional.mse_loss(output, torch.tensor(target)),
        BinaryCrossEntropy: lambda: torch.nn.functional.binary_cross_entropy_with_logits(
            output, torch.tensor(target)
        ),
    }[type(loss)]()
    with InProcess(module) as device:
        assert device.step(example().numpy(), target) == pytest.approx(expected.item(), rel=1e-5)
    assert module.metadata["options"]["loss"]["kind"] == type(loss).__name__


def test_name_is_in_every_public_name() -> None:
    module = library(name="other_2")
    assert {n for n in module.files if n.startswith("tt_")} == {
        f"tt_other_2{suffix}" for suffix in (".c", ".h", "_internal.h", "_kernels.c", "_params.c")
    }
    assert b"tt_small" not in b"".join(module.files.values())


def test_what_is_not_trained_lies_in_flash() -> None:
    roles = {t["name"]: t["role"] for t in library(update=LastLayer()).metadata["tensors"]}
    assert {roles["conv_weight"], roles["depthwise_weight"]} == {"const"}
    assert (roles["head_weight"], roles["head_bias"]) == ("param", "param")
    whole = library().metadata["memory"]
    assert whole["flash_constant_bytes"] == 0
    assert library(update=LastLayer()).metadata["memory"]["arena_bytes"] < whole["arena_bytes"]


def test_update_plan_is_what_full_training_means() -> None:
    layers = built().layers
    plan = UpdatePlan(tuple(LayerUpdate(la.id, tuple(range(la.channels))) for la in layers))
    assert (
        built(update=plan).files["tt_small.c"].replace(b" ", b"")[:200]
        == built(update=FullTrain()).files["tt_small.c"].replace(b" ", b"")[:200]
    )
    assert built(update=plan).files["tt_small_kernels.c"] == built().files["tt_small_kernels.c"]


def test_budget_that_suffices_changes_nothing_but_the_options() -> None:
    free = built()
    needed = free.metadata["memory"]["arena_bytes"]
    tight = built(budget=Budget(memory=needed))
    assert tight.metadata["memory"] == free.metadata["memory"]
    assert tight.files["tt_small_kernels.c"] == free.files["tt_small_kernels.c"]
    assert tight.metadata["options"]["budget"]["fields"]["memory"] == needed
    assert built(budget=Budget(memory="64KB")).metadata["memory"] == free.metadata["memory"]


@pytest.mark.host_compiler
def test_numbers_of_any_kind_are_numbers() -> None:
    def files(candidates: Any, memory: Any, compute: Any, cache_bytes: Any) -> dict[str, bytes]:
        update = TaskAdaptive(candidates=candidates, cache_bytes=cache_bytes)
        return built(M7, update=update, budget=Budget(memory=memory, compute=compute)).files

    expected = files(2, 16384, 0.15, 1024)
    assert files(np.int64(2), np.int32(16384), np.float64(0.15), "1KB") == expected
    tables = json.loads(expected["metadata.json"])["adaptive"]
    assert Budget(compute=Fraction(1, 3)).macs_of(9) == Budget(compute=1).macs_of(3) == 3  # type: ignore[arg-type]
    assert Budget(compute=np.float32(0.5)).macs_of(tables["full_macs"]) == tables["full_macs"] // 2


def test_memory_options_change_no_result() -> None:
    results = []
    for options in (MemoryOptions(), MemoryOptions.plain()):
        module = built(memory=options, optimizer=SGD(0.05, 0.9))
        with InProcess(module) as device:
            losses = [device.step(example().numpy(), k) for k in (0, 1, 2)]
            results.append(
                (losses, device.predict(example().numpy()), module.metadata["memory"]["arena_bytes"])
            )
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)
    assert results[0][2] <= results[1][2]
