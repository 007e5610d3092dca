"""A firmware that adapts by itself does what a host would have it do, to the last bit; its ProtoNet is the host's."""

from __future__ import annotations

import ctypes
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_tinytrain as tt
from tests.building.adaptive_net import CLASSES, SHAPE, network
from tests.compiled import loaded
from tvm_tinytrain.adaptation import DeviceDraws, DiffAugment, adapt
from tvm_tinytrain.adaptation.protonet import class_prototypes, loss_and_gradients
from tvm_tinytrain.errors import ArchiveError, PlanError, ShapeError, TinyTrainError, TransportError
from tvm_tinytrain.micro import Session, Standalone, generate_project, read_result
from tvm_tinytrain.micro.standalone import standalone_source
from tvm_tinytrain.micro.trained_rows import read_rows, take_checkpoint

SUPPORT, QUERIES, ITERATIONS = 2 * CLASSES, 4, 3
SCALE, OFFSET = 1 / 64, -2.0


@cache
def build(loss: Any, target: str = "c -mcpu=cortex-m7", *, accumulate: bool = True) -> tt.TrainModule:
    import torch

    options = tt.TaskAdaptive(candidates=4, channel_ratio="1/2")  # type: ignore[arg-type]
    return tt.build(
        network(), target, example_inputs=(torch.zeros(SHAPE),), optimizer=tt.Adam(0.01), update=options,
        budget=tt.Budget(memory=60000, compute=0.6), loss=loss, accumulate=accumulate,
    )  # fmt: skip


def task(**changed: Any) -> Standalone:
    rng = np.random.default_rng(2)
    samples = rng.integers(0, 256, (SUPPORT + QUERIES, *SHAPE[1:])).astype(np.uint8)
    labels = np.arange(SUPPORT) % CLASSES
    fields = {
        "samples": samples,
        "labels": labels,
        "iterations": ITERATIONS,
        "scale": SCALE,
        "offset": OFFSET,
        "rate": 0.02,
    }
    return Standalone(**{**fields, **changed})


def images(given: Standalone) -> np.ndarray:
    return (np.float32(SCALE) * given.samples.astype(np.float32) + np.float32(OFFSET)).astype(np.float32)


def run(module: tt.TrainModule, given: Standalone, folder: Path) -> tuple[Any, dict[str, bytes], Any, bytes]:
    """(what the firmware said, the trained rows, the plan, the checkpoint) of a standalone run on the emulated board."""
    project = generate_project(module, "mps2-an500", folder, standalone=given).build()
    with Session(project, start_s=120.0) as session:
        said = read_result(session.console(), session.entries)
        log = session.instruction_log()
        assert len(log) == 1 + len(said.entries) == 1 + said.calls  # "init" comes first
        assert all(inside > 0 for _, inside in log)
        rows = {k: v.tobytes() for k, v in read_rows(session, module.metadata).items()}
        return said, rows, session.read("plan"), take_checkpoint(session, module.metadata).to_bytes()


@pytest.mark.emulator
@pytest.mark.parametrize("train", ["accumulate", "step"])
def test_a_session_without_a_host_is_the_one_with_a_host(tmp_path: Path, train: str) -> None:
    given, module = task(), build(tt.CrossEntropy(), accumulate=train == "accumulate")
    said, rows, plan, checkpoint = run(module, given, tmp_path)
    assert said.status == 0
    assert said.layers > 0
    assert len(checkpoint) == said.checkpoint_bytes
    assert zlib.crc32(checkpoint[:-4]) == int.from_bytes(checkpoint[-4:], "little") == said.checkpoint_crc32
    with Session(module, "mps2-an500") as host:
        host.write("hyper", np.array([given.rate, *host.read("hyper")[1:]], np.float32))
        host.write("options", np.array([*host.read("options")[:-1], SUPPORT], np.int32))
        samples = [s[None] for s in images(given)]

        def sample(entry: str, index: int) -> float:
            host.write("x", samples[index])
            host.write("label", given.labels[index : index + 1].astype(np.int32))
            host.call(entry)
            return float(host.read("loss")[0])

        host.call("fisher_begin")
        for i in range(SUPPORT):
            sample("fisher", i)
        host.call("select")
        np.testing.assert_array_equal(host.read("plan"), plan)
        losses = []
        for _ in range(ITERATIONS):
            losses.append(np.mean([sample(train, i) for i in range(SUPPORT)]))
            if train == "accumulate":
                host.call("apply")
        # the same emulated board: not a bit differs, so the checkpoints may be compared
        assert {k: v.tobytes() for k, v in read_rows(host, module.metadata).items()} == rows
        assert take_checkpoint(host, module.metadata).to_bytes() == checkpoint
        assert tuple(int(host.predict(s).argmax()) for s in samples[SUPPORT:]) == said.labels
    np.testing.assert_allclose([said.first_loss, said.last_loss], [losses[0], losses[-1]], rtol=1e-6)
    assert said.last_loss < said.first_loss
    assert said.entries.count(f"{train}_store") == said.cached == SUPPORT
    assert said.entries.count(f"{train}_cached") == SUPPORT * (ITERATIONS - 1)


@pytest.mark.emulator
@pytest.mark.parametrize("augment", [None, DiffAugment()], ids=["as it is", "augmented"])
def test_a_protonet_without_a_host(tmp_path: Path, augment: DiffAugment | None) -> None:
    """The prototypes' loss: as `adapt` from the host does it, with the support set as its own pseudo-queries or the device's."""
    given, module = task(embedding=CLASSES, augment=augment, seed=9), build(tt.Prototypical())
    said, rows, plan, _ = run(module, given, tmp_path)
    assert said.status == 0
    assert said.entries.count("predict_store") == said.cached == SUPPORT
    draws = DeviceDraws(given.seed)
    with loaded(module) as host:
        support = images(given)
        result = adapt(
            host,
            support[:SUPPORT],
            given.labels,
            iterations=ITERATIONS,
            lr=given.rate,
            queries=lambda s, _: augment(s, draws) if augment else s,
        )
        words = module.metadata["adaptive"]["plan_words"]
        np.testing.assert_array_equal(host.read("plan")[: words["end"]], plan[: words["end"]])
        for name, value in read_rows(host, module.metadata).items():
            np.testing.assert_allclose(
                np.frombuffer(rows[name], np.float32).reshape(value.shape), value, rtol=2e-3, atol=2e-4
            )
        assert tuple(result.classify(host, support[SUPPORT:])) == said.labels
        np.testing.assert_allclose(
            [said.first_loss, said.last_loss], [result.losses[0], result.losses[-1]], rtol=1e-3
        )


@pytest.mark.host_compiler
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_the_devices_protonet_is_the_hosts(distance: str, through: bool) -> None:
    class Options(ctypes.Structure):
        _fields_ = (("distance", ctypes.c_uint8), ("through", ctypes.c_uint8), ("scale", ctypes.c_float))

    class Set(ctypes.Structure):
        _fields_ = (
            ("embeddings", ctypes.c_void_p), ("labels", ctypes.c_void_p), ("samples", ctypes.c_uint32), ("classes", ctypes.c_uint32),
            ("width", ctypes.c_uint32),
        )  # fmt: skip

    rng = np.random.default_rng(4)
    embeddings = rng.normal(size=(13, 7)).astype(np.float32)
    embeddings[3] = 0.0  # a norm that is clamped
    labels = (np.arange(13) % 4).astype(np.int32)
    loss = tt.Prototypical(distance, scale=0.75, through_prototypes=through)
    with loaded(build(tt.Prototypical(), "host")) as library:
        c = library._library
        c.tt_protonet_scratch_bytes.restype, c.tt_protonet_seeds.restype = ctypes.c_size_t, ctypes.c_double
        scratch = np.zeros(c.tt_protonet_scratch_bytes(4, 7), np.uint8)
        prototypes, seeds = np.zeros((4, 7)), np.zeros((13, 7), np.float32)
        given = Set(embeddings.ctypes.data, labels.ctypes.data, 13, 4, 7)
        options = Options(("cosine", "euclidean").index(distance), through, loss.scale)
        p, s, t = (ctypes.c_void_p(a.ctypes.data) for a in (prototypes, seeds, scratch))
        assert c.tt_protonet_prototypes(ctypes.byref(given), p) == 0
        got = c.tt_protonet_seeds(ctypes.byref(given), ctypes.byref(options), p, t, s)
        expected = loss_and_gradients(embeddings, labels, embeddings, labels, loss)
        np.testing.assert_allclose(prototypes, class_prototypes(embeddings, labels, 4), rtol=1e-12)
        want = expected.queries if expected.support is None else expected.queries + expected.support
        np.testing.assert_allclose(seeds, want, rtol=1e-5, atol=1e-6)
        assert got == pytest.approx(expected.loss, rel=1e-9)
        labels[2] = 4
        assert c.tt_protonet_prototypes(ctypes.byref(given), p) == -4


def test_labels_may_be_a_list() -> None:
    given, listed = task(), task(labels=task().labels.tolist(), iterations=np.int64(ITERATIONS))
    assert standalone_source("x", listed) == standalone_source("x", given)


@pytest.mark.host_compiler
@pytest.mark.parametrize(
    ("loss", "changed", "found"),
    [
        (tt.Prototypical(), {"embedding": 3}, "standalone embedding: found 3; allowed 6"),
        (tt.Prototypical(), {}, "standalone embedding: found 0; allowed 6"),
        (tt.CrossEntropy(), {"embedding": 6}, "standalone embedding: found 6; allowed 0"),
        (
            tt.CrossEntropy(),
            {"samples": np.zeros((20, 3, 8, 8), np.uint8)},
            r"standalone samples: found \(20, 3, 8, 8\); allowed \[n, 3, 12, 12\]",
        ),
        (
            tt.CrossEntropy(),
            {"samples": np.zeros((20, *SHAPE[1:]), np.uint8), "labels": np.arange(10)},
            "standalone classes: found 10; allowed 6 at most",
        ),
        (tt.MSE(), {}, r"label: found float32\[1, 6\]; allowed one int32; build it with CrossEntropy"),
    ],
)
def test_a_task_of_another_library_is_refused_before_anything_is_written(
    tmp_path: Path, loss: Any, changed: dict[str, Any], found: str
) -> None:
    """The firmware would say it by a status, once it is on the board."""
    kept = tmp_path / "library" / "kept"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(TinyTrainError, match=found):
        generate_project(build(loss), "mps2-an500", tmp_path, standalone=task(**changed))
    assert kept.exists()


@pytest.mark.host_compiler
def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="standalone: found dict; allowed Standalone"):
        generate_project(build(tt.CrossEntropy()), "mps2-an500", tmp_path, standalone={})  # type: ignore[arg-type]


def test_tasks_and_consoles_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ShapeError, match="labels"):
        task(labels=np.array([0, 2]))
    with pytest.raises(ShapeError, match="float32"):
        task(samples=np.zeros((20, 3), np.float32))
    for name, value in (
        ("rate", 1e39),
        ("rate", 1e-50),
        ("rate", -1e-3),
        ("scale", float("nan")),
        ("scale", 1e-50),
        ("offset", float("inf")),
    ):
        with pytest.raises(PlanError, match=f"{name}: found .*; allowed a finite number"):
            task(**{name: value})
    with pytest.raises(PlanError, match="augment: found True; allowed DiffAugment"):
        task(augment=True)
    for name, wrong in (
        ("labels", np.arange(6.0)),
        ("labels", np.arange(6)[:, None]),
        ("samples", [[1, 2]] * 6),
    ):
        with pytest.raises(ShapeError, match="allowed uint8 samples, integer labels"):
            task(**{name: wrong})
    for name in ("iterations", "embedding", "seed"):
        for value in (2.5, "2", None, True, -1, 2**65):
            with pytest.raises(PlanError, match=f"{name}: found .*; allowed a whole number, 0 to "):
                task(**{name: value})
    for loss in (tt.CrossEntropy(), "cosine", None):
        with pytest.raises(PlanError, match=r"loss: found .*; allowed Prototypical\("):
            task(loss=loss)
    with pytest.raises(PlanError, match="fisher_through_prototypes: found 'no'"):
        task(fisher_through_prototypes="no")
    with pytest.raises(TransportError, match="no result"):
        read_result(["hello"], ["init"])


def said(*lines: str) -> list[str]:
    return [f"tt-standalone: {line}" for line in lines]


RESULT = ("result 0 1 6 0 1065353216", "labels 1 0", "labels 2", "checkpoint 0 48 7", "calls 9",
          "entries 1 0 1", "entries 2 1 3 0 1", "end 7")  # fmt: skip


def test_a_result_is_read_and_one_with_a_part_missing_is_refused() -> None:
    result = read_result(["hello", *said(*RESULT)], ["init", "step"])
    assert result.entries == ("init", *("step", "step", "step", "init") * 2)
    assert (result.calls, result.labels, result.last_loss) == (9, (1, 0, 2), 1.0)
    assert result.checkpoint_crc32 == 7
    for lines, text in (
        (RESULT[2:], "found 5 of 7 lines of the result; allowed all of them; the first ones are lost"),
        (RESULT[:-1], "found 7 lines and no end"),
        (("result 0 1 x", *RESULT[1:]), "a damaged line"),
        (("result 0 1 6 0", *RESULT[1:]), "a damaged line"),
        ((*RESULT[:5], "entries 1 9 1", *RESULT[6:]), "a damaged line"),
        ((*RESULT[:5], "entries 1 1", *RESULT[6:]), "a damaged line"),
    ):
        with pytest.raises(TransportError, match=text):
            read_result(said(*lines), ["init", "step"])


@pytest.mark.host_compiler
def test_budgets_that_nothing_fits_are_no_failure(tmp_path: Path) -> None:
    import torch

    module = tt.build(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), "host", example_inputs=(torch.zeros(1, 4),),
        update=tt.TaskAdaptive(), loss=tt.CrossEntropy(), accumulate=True, budget=tt.Budget(compute=1e-9),
    )  # fmt: skip
    given = Standalone(np.arange(16, dtype=np.uint8).reshape(4, 4), np.array([0, 1, 1]), 2)
    with Session(generate_project(module, "host", tmp_path, standalone=given).build()) as session:
        result = read_result(session.console(), session.entries)
    assert (result.status, result.layers, result.first_loss) == (0, 0, 0.0)
    assert (result.checkpoint_bytes, result.checkpoint_crc32) == (0, 0)
    assert len(result.labels) == 1 and result.labels[0] >= 0


@pytest.mark.host_compiler
@pytest.mark.parametrize("iterations", [0, 1, 2, 4000])
def test_a_long_session_is_told_whole(tmp_path: Path, iterations: int) -> None:
    """Tens of thousands of calls are a few lines, and another task's checkpoint has another CRC."""
    import torch

    module = tt.build(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), "host", example_inputs=(torch.zeros(1, 4),),
        update=tt.TaskAdaptive(cached_samples=2), loss=tt.CrossEntropy(), accumulate=True,
    )  # fmt: skip
    samples = np.arange(4 * 4, dtype=np.uint8).reshape(4, 4)
    found = []
    for scale in (1e-3, 2e-3):
        given = Standalone(samples, np.array([0, 1, 1]), iterations, scale)
        project = generate_project(module, "host", tmp_path, standalone=given).build()
        with Session(project) as session:
            result = read_result(session.console(), session.entries)
            assert len(session.console()) < 20
            checkpoint = take_checkpoint(session, module.metadata).to_bytes()
        assert zlib.crc32(checkpoint[:-4]) == result.checkpoint_crc32
        first = ["accumulate_store"] * 2 + ["accumulate", "apply"]
        later = ["accumulate_cached"] * 2 + ["accumulate", "apply"]
        expected = ["release", "fisher_begin", *["fisher"] * 3, "select"]
        expected += (first + later * (iterations - 1) if iterations else []) + ["predict"]
        assert list(result.entries) == expected
        assert result.calls == len(expected)
        found.append(result.checkpoint_crc32)
    assert (found[0] != found[1]) == (iterations > 0)


@pytest.mark.host_compiler
def test_a_fixed_library_does_not_adapt_by_itself(tmp_path: Path) -> None:
    import torch

    module = tt.build(network(), "c -mcpu=cortex-m7", example_inputs=(torch.zeros(SHAPE),))
    with pytest.raises(ArchiveError, match="task-adaptive"):
        generate_project(module, "mps2-an500", tmp_path, standalone=task())
    module = build(tt.Prototypical(), accumulate=False)
    with pytest.raises(ArchiveError, match=r"prototypes.*a step for each sample.*accumulate=True"):
        generate_project(module, "mps2-an500", tmp_path, standalone=task(embedding=CLASSES))
