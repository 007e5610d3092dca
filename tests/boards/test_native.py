"""Kernels by TVM's LLVM: the same numbers as the C's, on this machine and under both Cortex-A emulators."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_tinytrain as tt
from tests.building.adaptive_net import program, samples
from tvm_tinytrain.errors import BoardError
from tvm_tinytrain.micro import Session, generate_project
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.targets.boards import get_board
from tvm_tinytrain.targets.cores import CORES

AARCH64 = "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a53"
ARMV7 = "llvm -mtriple=arm-linux-gnueabihf -mcpu=cortex-a7"
ADAPTIVE: dict[str, Any] = {
    "update": tt.TaskAdaptive(candidates=4),
    "budget": tt.Budget(memory="20KB", compute=0.6),
    "loss": tt.Prototypical(),
    "accumulate": True,
}
WHERE = [
    pytest.param("llvm", "host", "host", marks=pytest.mark.host_compiler),
    pytest.param(
        AARCH64,
        "cortex-a53",
        "qemu-aarch64",
        marks=pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64"),
    ),
    pytest.param(
        ARMV7, "cortex-a7", "qemu-arm", marks=pytest.mark.needs("arm-linux-gnueabihf-gcc", "qemu-arm")
    ),
]


def make(target: str, **options: Any) -> tt.TrainModule:
    return tt.build(program(), target, optimizer=tt.Adam(0.01), name="m", **options)


@cache
def build(target: str, adaptive: bool = False) -> tt.TrainModule:
    return make(target, **(ADAPTIVE if adaptive else {}))


def trained(module: tt.TrainModule, board: str) -> list[np.ndarray]:
    """Losses, a prediction and the parameters after a few steps."""
    with Session(module, board) as session:
        losses = np.array([session.step(image, label) for image, label in samples(4)])
        names = [t.name for t in session.tensors.values() if t.role == "param"]
        return [losses, session.predict(samples(1)[0][0]), *(session.read(name) for name in names)]


def adapted(module: tt.TrainModule, board: str) -> tuple[str, list[np.ndarray], int]:
    """The plan that the board chose, its rows, instructions of a backward pass (0 where they are not counted)."""
    images, labels = (np.stack(part) for part in zip(*samples(10), strict=True))
    with Session(module, board) as session:
        result = session.adapt(images, labels, iterations=3)
        rows = session.trained_rows()
        counted = session.time("accumulate") if session.time_unit == "instructions" else 0
        assert result.plan is not None
        return result.plan.digest, [np.array(result.losses), *(rows[name] for name in sorted(rows))], counted


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(np.abs(wanted).max(initial=0), 1e-9))


@pytest.mark.parametrize(("target", "core", "board"), WHERE)
def test_training_agrees_with_the_c_build(target: str, core: str, board: str) -> None:
    native = build(target)
    kernels = native.metadata["kernels"]
    assert (kernels["form"], kernels["file"]) == ("object", "tt_m_kernels.o")
    assert kernels["triple"] == native.target.mtriple and core in ("host", kernels["mcpu"])
    assert "tt_m_kernels.c" not in native.files and native.files["tt_m_kernels.o"][:4] == b"\x7fELF"
    assert_close(trained(native, board), trained(build("host"), "host"))


@pytest.mark.parametrize(("target", "core", "board"), WHERE)
def test_adaptation_agrees_with_the_c_build(target: str, core: str, board: str) -> None:
    plan, values, counted = adapted(build(target, adaptive=True), board)
    own_plan, own_values, own = adapted(build(f"c -mcpu={core}", adaptive=True), board)
    assert plan == own_plan
    assert_close(values, own_values)
    assert counted <= 1.25 * own  # about what GCC makes of the same loops


@pytest.mark.needs("aarch64-linux-gnu-gcc", "qemu-aarch64")
def test_neon_saves_instructions() -> None:
    counts = []
    for target in (AARCH64, "c -mcpu=cortex-m7"):  # the same network as loops without vectors
        with Session(build(target), "qemu-aarch64") as session:
            session.step(*samples(1)[0])
            counts.append(session.time("step"))
    assert counts[0] < 0.9 * counts[1], counts


def test_equal_input_gives_equal_objects_and_the_archive_keeps_them(tmp_path: Any) -> None:
    module = build(AARCH64)
    assert make(AARCH64).files == module.files
    loaded = tt.load(module.export(tmp_path / "m.tar"))
    assert dict(loaded.files) == module.files
    assert loaded.metadata["kernels"] == module.metadata["kernels"]
    with pytest.raises(
        BoardError, match=r"object for aarch64-linux-gnu \(cortex-a53\); allowed arm-none-eabi"
    ):
        generate_project(loaded, "mps2-an500", tmp_path / "project")


def test_a_library_of_another_machine_is_not_linked_into_this_process() -> None:
    with pytest.raises(BoardError, match=r"on host: found an object for arm-linux-gnueabihf \(cortex-a7\)"):
        InProcess(build(ARMV7))


@pytest.mark.parametrize(
    ("core", "allowed", "refused"),
    [
        ("cortex-m0plus", ("mps2-an385",), ("mps2-an386", "mps2-an500")),
        ("cortex-m4", ("mps2-an386", "mps2-an500", "mps2-an505", "mps3-an547"), ("mps2-an385",)),
        ("cortex-m7", ("mps2-an500", "mps2-an505", "mps3-an547"), ("mps2-an385", "mps2-an386")),
        ("cortex-m33", ("mps2-an505", "mps3-an547"), ("mps2-an386", "mps2-an500")),
        ("cortex-m55", ("mps3-an547",), ("mps2-an500", "mps2-an505")),
        ("cortex-a53", ("qemu-aarch64", "raspberry-pi-4", "jetson-nano"), ("qemu-arm", "host")),
        ("cortex-a76", (), ("qemu-aarch64", "raspberry-pi-4")),
    ],
)
def test_an_object_is_for_boards_whose_core_has_its_instructions(
    fake: Any, tmp_path: Path, core: str, allowed: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    kernels = {"form": "object", "triple": CORES[core].triple, "mcpu": core}
    native = replace(fake, metadata={**fake.metadata, "kernels": kernels})
    for board in allowed:
        generate_project(native, board, tmp_path / board)
    for board in refused:
        with pytest.raises(BoardError, match=rf"found an object for .* \({core}\); allowed .* \(.*\); build"):
            generate_project(native, board, tmp_path / board)


def test_what_this_machine_has_is_for_its_owner_to_say(fake: Any, tmp_path: Path) -> None:
    triple = get_board("host").target.core.triple
    more = max(
        (core for core in CORES.values() if core.triple == triple), key=lambda core: len(core.features)
    )
    kernels = {"form": "object", "triple": triple, "mcpu": more.name}
    generate_project(replace(fake, metadata={**fake.metadata, "kernels": kernels}), "host", tmp_path)
