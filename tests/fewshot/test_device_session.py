"""A device's own session with augmented pseudo-queries, under the sanitizers, against the host's procedure with the same draws."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_tinytrain as tt
from tests.building.adaptive_net import CLASSES, SHAPE, program
from tests.compiled import loaded
from tvm_tinytrain.adaptation import DeviceDraws, DiffAugment
from tvm_tinytrain.errors import ArchiveError, PlanError
from tvm_tinytrain.micro import Standalone, generate_project
from tvm_tinytrain.micro.standalone import standalone_source
from tvm_tinytrain.targets.runtime_files import runtime_folder

pytestmark = pytest.mark.host_compiler
SUPPORT, QUERIES, ITERATIONS, SEED = 2 * CLASSES, 4, 3, 41
Compiled = Callable[[Any], tuple[tt.TrainModule, Path]]
FLAGS = (
    "-std=c11", "-g1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip


def build(loss: Any) -> tt.TrainModule:
    """Gradients are accumulated for the prototypes, and applied where they are made for labels."""
    accumulate = isinstance(loss, tt.Prototypical)
    return tt.build(
        program(), "host", optimizer=tt.Adam(0.01), update=tt.TaskAdaptive(candidates=4, channel_ratio="1/2"),  # type: ignore[arg-type]
        budget=tt.Budget(memory=60000, compute=0.6), loss=loss, accumulate=accumulate, name="adaptive",
    )  # fmt: skip


def task(**changed: Any) -> Standalone:
    samples = np.random.default_rng(2).integers(0, 256, (SUPPORT + QUERIES, *SHAPE[1:])).astype(np.uint8)
    given = Standalone(
        samples,
        np.arange(SUPPORT) % CLASSES,
        ITERATIONS,
        1 / 64,
        -2.0,
        0.02,
        augment=DiffAugment(),
        seed=SEED,
    )
    return replace(given, **changed)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Builds a library and compiles it, once for each loss; a folder with its headers and objects."""

    @cache
    def make(loss: Any) -> tuple[tt.TrainModule, Path]:
        module, folder = build(loss), tmp_path_factory.mktemp("library")
        module.write(folder)
        sources = [n for n in sorted(module.files) if n.endswith(".c")]
        subprocess.run(["gcc", *FLAGS, "-c", *sources], cwd=folder, check=True)
        return module, folder

    return make


class Run:
    """What the driver wrote: lines by their first word, what each entry read, the plan."""

    def __init__(self, module: tt.TrainModule, library: Path, given: Standalone, folder: Path) -> None:
        name = f"tt_{module.name}"
        folder.mkdir(exist_ok=True)
        (folder / "task.c").write_text(standalone_source(module.name, given))
        image = next(t["name"] for t in module.metadata["tensors"] if t["role"] == "input")
        defines = [f"-DLIBRARY={name}_library", f"-DINIT={name}_init", f'-DLIBRARY_HEADER="{name}.h"']
        includes = [f"-I{library}", f"-I{runtime_folder() / 'include'}", f'-DINPUT="{image}"']
        sources = [Path(__file__).with_name("session_driver.c"), folder / "task.c"]
        sources += sorted(library.glob("*.o"))
        out = folder / "driver"
        subprocess.run(
            ["gcc", *FLAGS, *defines, *includes, *map(str, sources), "-o", str(out), "-lm"], check=True
        )
        done = subprocess.run([str(out), str(folder / "inputs")], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, done.stderr[:3000]
        self.said: dict[str, list[list[str]]] = {}
        for line in done.stdout.splitlines():
            what, *rest = line.split()
            self.said.setdefault(what, []).append(rest)
        self.entries = [e for (e,) in self.said.get("entry", [])]
        words = np.frombuffer((folder / "inputs").read_bytes(), np.float32)
        size = int(np.prod(SHAPE))
        adapted = len(self.entries) * size  # the driver's refusals run no entry
        self.inputs = words[:adapted].reshape(-1, *SHAPE[1:])
        self.plan = words[adapted:].view(np.int32)

    def read_by(self, entry: str) -> np.ndarray:
        return self.inputs[[i for i, e in enumerate(self.entries) if e == entry]]


def images(given: Standalone) -> np.ndarray:
    return np.float32(1 / 64) * given.samples.astype(np.float32) + np.float32(-2.0)


def replay(seen: list[np.ndarray]) -> Any:
    """The device's pseudo-queries on the host; keeps what it made."""
    draws = DeviceDraws(SEED)

    def queries(samples: np.ndarray, _: object) -> np.ndarray:
        seen.append(DiffAugment()(samples, draws))
        return seen[-1]

    return queries


def expect(host: Any, samples: int) -> None:
    """Tell a library how many samples to lay its cache out for, as a session does."""
    options = host.read("options")
    options[-1] = samples
    host.write("options", options)


def check(run: Run, given: Standalone, result: Any, host: Any, seen: list[np.ndarray], train: str) -> None:
    """Images, plan and losses of a session are the host's; what must be refused is, by its own code."""
    same = {"rtol": 1e-5, "atol": 4e-6}
    assert len(seen) == 1 + ITERATIONS
    both = [seen[0], images(given)[:SUPPORT]] if given.fisher_through_prototypes else [seen[0]]
    np.testing.assert_allclose(run.read_by("fisher"), np.concatenate(both), **same)
    trained = run.read_by(train).reshape(ITERATIONS, -1, *SHAPE[1:])
    np.testing.assert_allclose(trained[:, :SUPPORT], np.stack(seen[1:]), **same)
    ((status, layers, _, first, last),) = run.said["result"]
    assert status == "0" and int(layers) == len(result.plan) > 0
    np.testing.assert_array_equal(run.plan, host.read("plan"))
    got = [float.fromhex(first), float.fromhex(last)]
    np.testing.assert_allclose(got, [result.losses[0], result.losses[-1]], rtol=1e-4)
    assert run.said["scratch"] == [[str(given.scratch_bytes), str(max(8, given.scratch_bytes + 7) // 8 * 8)]]
    assert (run.said["wrong"], run.said["small"], run.said["flat"]) == ([["-4"]], [["-2"]], [["-15"]])
    assert run.said["rate"] == [["-4"]] * 3
    assert run.said["outside"] == [
        ["-4"],
        ["-4"],
        ["-10"],
        ["-4"],
    ]  # labels in range: it is the source that fails
    own = ["0x1.47ae14p-7"]  # float32 0.01, of Adam
    # whatever ends a session, the next one with rate 0 has the library's own
    assert run.said["before"] == run.said["after"] == run.said["end"] == [own]


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("fisher", [True, False])
def test_a_session_of_prototypes_with_augmented_queries(
    tmp_path: Path, compiled: Compiled, through: bool, fisher: bool
) -> None:
    loss, seen = tt.Prototypical(through_prototypes=through), []
    given = task(embedding=CLASSES, loss=loss, fisher_through_prototypes=fisher)
    module, library = compiled(tt.Prototypical())
    run = Run(module, library, given, tmp_path)
    with loaded(module) as host:
        expect(host, SUPPORT)
        support = images(given)
        result = host.adapt(
            support[:SUPPORT],
            given.labels,
            iterations=ITERATIONS,
            lr=given.rate,
            loss=loss,
            queries=replay(seen),
            fisher_through_prototypes=fisher,
        )
        check(run, given, result, host, seen, "accumulate")
        labels = [int(label) for (label,) in run.said["label"]]
        assert labels == result.classify(host, support[SUPPORT:]).tolist()
    # prototypes come from the cache, and so does what flows through them; queries never do
    count = run.entries.count
    assert count("predict_store") == SUPPORT and count("predict_cached") == ITERATIONS * SUPPORT
    assert count("predict") == (2 + ITERATIONS) * SUPPORT + QUERIES
    assert count("accumulate") == ITERATIONS * SUPPORT
    assert count("accumulate_cached") == (ITERATIONS * SUPPORT if through else 0)


def test_the_fisher_pass_adds_what_flows_through_the_prototypes(compiled: Compiled) -> None:
    module, _ = compiled(tt.Prototypical())
    given = task()
    loss = tt.Prototypical(through_prototypes=False)
    with loaded(module) as host:
        queries, both = (
            host.adapt(
                images(given)[:SUPPORT],
                given.labels,
                iterations=1,
                loss=loss,
                fisher_through_prototypes=through,
            ).fisher
            for through in (False, True)
        )
    assert list(queries) == list(both)
    assert all((both[layer] >= queries[layer]).all() for layer in both)
    assert all((both[layer] > queries[layer]).any() for layer in both)


def test_a_session_of_labels_with_augmented_samples(tmp_path: Path, compiled: Compiled) -> None:
    given, (module, library), seen = task(), compiled(tt.CrossEntropy()), []
    run = Run(module, library, given, tmp_path)
    with loaded(module) as host:
        expect(host, SUPPORT)
        support = images(given)
        result = host.learn(
            support[:SUPPORT], given.labels, iterations=ITERATIONS, lr=given.rate, queries=replay(seen)
        )
        check(run, given, result, host, seen, "step")
        labels = [int(label) for (label,) in run.said["label"]]
        assert labels == [int(host.predict(s[None]).argmax()) for s in support[SUPPORT:]]
    assert not any(e.endswith(("_store", "_cached")) for e in run.entries)
    other = Run(module, library, task(seed=SEED + 1), tmp_path / "other")
    assert not np.array_equal(other.read_by("fisher"), run.read_by("fisher"))
    assert other.said["result"] != run.said["result"]


def test_labels_that_are_no_classes_are_refused(tmp_path: Path, compiled: Compiled) -> None:
    run = Run(*compiled(tt.MSE()), task(), tmp_path)
    assert run.said["result"][0][0] == "-6"
    assert run.entries == []


def test_what_cannot_be_augmented_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="seed: found -1"):
        task(seed=-1)
    for rate in (-0.5, float("nan"), float("inf")):
        with pytest.raises(PlanError, match=f"rate: found {rate}"):
            task(rate=rate)

    class Flat:
        name, files = "flat", {"tt_session.h": b"", "tt_flat.h": b""}
        metadata = {
            "memory": {"arena_bytes": 8},
            "tensors": [{"name": "x", "role": "input", "dtype": "uint8", "shape": [1, 3, 12, 12]}],
        }

    with pytest.raises(ArchiveError, match=r"input to augment.*uint8.*float32\[1, channels, height, width\]"):
        generate_project(Flat(), "mps2-an500", tmp_path, standalone=task())
