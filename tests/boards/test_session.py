"""Sessions on this machine and on an emulated Cortex-M7: tensors, entries, measurements, refusals."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.boards.conftest import ARENA_BYTES, EMULATED, HOST, hand_written
from tvm_tinytrain.errors import ArchiveError, BoardError, DTypeError, PlanError, ShapeError, TransportError
from tvm_tinytrain.micro import GeneratedProject, Session, generate_project, get_supported_boards
from tvm_tinytrain.targets.boards import get_board

X = (np.arange(16, dtype=np.float32) / 16 - 0.3).reshape(1, 16)
Y = np.array([[0.5, -1.0, 2.0, 0.0]], dtype=np.float32)


def reference_step(weight: np.ndarray, bias: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    error = (weight @ X[0] + bias) - Y[0]
    slope = 2 * error / 4
    return float((error**2).mean()), weight - 0.05 * np.outer(slope, X[0]), bias - 0.05 * slope


@pytest.mark.parametrize("board", [HOST, EMULATED])
def test_training_follows_numpy(built: Any, board: str) -> None:
    with Session(built(board)) as session:
        weight = session.read("weight").astype(np.float64)
        bias = session.read("bias").astype(np.float64)
        for _ in range(20):
            loss, weight, bias = reference_step(weight, bias)
            assert session.step(X, Y) == pytest.approx(loss, rel=1e-5)
        np.testing.assert_allclose(session.read("weight"), weight, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(session.predict(X[0]), (weight @ X[0] + bias)[None], rtol=1e-4, atol=1e-6)
        assert session.read("steps").tolist() == [20]


@pytest.mark.needs("arm-linux-gnueabihf-gcc", "qemu-arm")
def test_an_emulated_linux_board_may_have_any_name(fake: Any, tmp_path: Path) -> None:
    own = replace(get_board("qemu-arm"), name="my-board")
    with Session(generate_project(fake, own, tmp_path).build()) as session:
        assert session.info.board == "my-board" and np.isfinite(session.step(X, Y))


@pytest.mark.parametrize("board", [HOST, EMULATED])
def test_tensors_round_trip(built: Any, board: str) -> None:
    rng = np.random.default_rng(0)
    with Session(built(board)) as session:
        for name, tensor in session.tensors.items():
            if tensor.in_flash:
                continue
            for content in (rng.bytes(tensor.bytes), bytes(tensor.bytes), b"\xff" * tensor.bytes):
                array = np.frombuffer(content, dtype=tensor.dtype).reshape(tensor.shape)
                session.write(name, array)
                assert session.read(name).tobytes() == content
        assert session.tensors["bytes"].shape == (3, 10, 100)
        assert session.tensors["loss"].shape == ()
        assert session.read("initial_weight")[0, 1] == np.float32(-0.2)


@pytest.mark.host_compiler
def test_refusals_before_anything_is_sent(built: Any) -> None:
    with Session(built("host")) as session:
        before = session.read("weight")
        with pytest.raises(ShapeError, match=r"tensor weight: found \(16, 4\); allowed \(4, 16\)"):
            session.write("weight", np.zeros((16, 4), np.float32))
        with pytest.raises(DTypeError, match="float64; allowed float32"):
            session.write("weight", np.zeros((4, 16)))
        with pytest.raises(ShapeError, match="in flash"):
            session.write("initial_weight", np.zeros((4, 16), np.float32))
        with pytest.raises(ShapeError, match="'wieght'; allowed input, label"):
            session.read("wieght")
        with pytest.raises(TransportError, match="'setp'; allowed init, step"):
            session.call("setp")
        with pytest.raises(ShapeError):
            session.step(X[:, :5], Y)
        with pytest.raises(PlanError, match="tensor input: found nan or infinity; allowed finite numbers"):
            session.step(X * np.float32(np.nan), Y)
        np.testing.assert_array_equal(session.read("weight"), before)


@pytest.mark.parametrize("board", [HOST, EMULATED])
def test_memory_is_measured(built: Any, board: str) -> None:
    with Session(built(board)) as session:
        session.step(X, Y)
        first = session.memory()
        assert first["arena_bytes"] == ARENA_BYTES
        assert first["arena_high_water_bytes"] == first["arena_touched_bytes"] == 3376
        assert 0 < first["stack_bytes"] < first["stack_limit_bytes"]
        session.call("use_stack")
        assert session.memory()["stack_bytes"] > max(4000, first["stack_bytes"])
        session.call("past_arena")  # into the guard behind the arena
        assert session.memory()["arena_high_water_bytes"] == ARENA_BYTES + 8
        session.reset()
        again = session.memory()
        assert again["arena_high_water_bytes"] == 3376
        assert again["stack_bytes"] < 4000 or board == "host"
        assert session.read("steps").tolist() == [0]


@pytest.mark.emulator
def test_instructions_are_exact(built: Any) -> None:
    counts = []
    for _ in range(2):
        with Session(built("mps2-an500"), by_function=True) as session:
            assert session.time_unit == "instructions"
            session.write("input", X)
            session.write("label", Y)
            counts += [session.time("step") for _ in range(3)]
            functions = session.function_instructions()
            assert sum(functions.values()) == counts[-1]
            assert functions["tt_fake_step"] > 100
    assert len(set(counts)) == 1
    assert 300 < counts[0] < 2000


@pytest.mark.host_compiler
def test_time_on_this_machine_is_nanoseconds(built: Any) -> None:
    with Session(built("host")) as session:
        assert session.time_unit == "nanoseconds"
        assert 0 < session.time("step") < 1e9


@pytest.mark.emulator
def test_host_and_board_agree_to_the_last_bit(built: Any) -> None:
    results = []
    for board in ("host", "mps2-an500"):
        with Session(built(board)) as session:
            losses = [session.step(X, Y) for _ in range(50)]
            results.append((losses, session.read("weight").tobytes(), session.predict(X).tobytes()))
    assert results[0] == results[1]


@pytest.mark.emulator
def test_a_large_arena_goes_to_external_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arena_bytes = 5 << 20
    source = hand_written().files["tt_fake.c"]
    grown = source.replace(b"TT_FAKE_ARENA_BYTES,\n", b"%d,\n" % arena_bytes)
    grown = grown.replace(b"OUTPUTS * 4, AT(bias)}", b"OUTPUTS * 4, %du, NULL}" % (arena_bytes - 16))
    module = hand_written(arena_bytes, **{"tt_fake.c": grown})
    with Session(module, "mps2-an500", tmp_path) as session:
        assert session.project.arena_memory == "PSRAM"
        assert "does not fit SRAM and lies in PSRAM" in caplog.text
        assert session.memory()["external_bytes_linked"] > arena_bytes
        session.write("bias", np.arange(4, dtype=np.float32))
        assert session.read("bias").tolist() == [0, 1, 2, 3]
        assert session.memory()["arena_high_water_bytes"] == arena_bytes


@pytest.mark.emulator
def test_an_arena_that_fits_nowhere_says_how_many_bytes(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match=r"memory PSRAM: found \d+ bytes too many"):
        generate_project(hand_written(17 << 20), "mps2-an500", tmp_path).build()


@pytest.mark.host_compiler
def test_an_arena_that_is_smaller_than_the_library_needs(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="returned -2"), Session(hand_written(1024), "host") as session:
        session.call("step")


def test_unknown_board_and_broken_modules(tmp_path: Path) -> None:
    fake = hand_written()
    with pytest.raises(BoardError, match=r"'mps2'; allowed host, .*mps2-an500.*boards\.py"):
        Session(fake, "mps2")
    with pytest.raises(ArchiveError, match=r"tt_other\.h"):
        generate_project(type(fake)("other", fake.files, fake.metadata), "host", tmp_path)
    with pytest.raises(ArchiveError, match="arena_bytes"):
        generate_project(type(fake)("fake", fake.files, {}), "host", tmp_path)
    assert {"host", "mps2-an500"} <= set(get_supported_boards())


@pytest.mark.host_compiler
def test_source_that_does_not_compile(tmp_path: Path) -> None:
    module = hand_written(**{"tt_fake.c": b"int broken(\n"})
    with pytest.raises(BoardError, match=r"compile: tt_fake\.c: (.|\n)*error:"):
        generate_project(module, "host", tmp_path).build()
    assert not list(tmp_path.rglob("*.elf"))


@pytest.mark.host_compiler
def test_objects_are_used_again(fake: Any, tmp_path: Path) -> None:
    first = generate_project(fake, "host", tmp_path).build()
    objects = {path: path.stat().st_mtime_ns for path in (tmp_path / "build" / "objects").iterdir()}
    generate_project(fake, "host", tmp_path).build()
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "build" / "objects").iterdir()}
    assert again == objects
    assert struct.unpack_from("<4s", first.program_path.read_bytes()) == (b"\x7fELF",)


@pytest.mark.host_compiler
def test_a_project_is_found_again(fake: Any, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="generate_project"):
        GeneratedProject.from_directory(tmp_path)
    generate_project(fake, "host", tmp_path).build()
    with Session(GeneratedProject.from_directory(tmp_path)) as session:
        session.call("step")
        assert session.memory()["flash_bytes"] > 0


@pytest.mark.host_compiler
def test_use_outside_of_a_session(built: Any) -> None:
    session = Session(built("host"))
    with pytest.raises(TransportError, match="not open"):
        session.read("weight")
    with session:
        session.call("init")
    session.close()
    session.close()
    with pytest.raises(TransportError, match="not open"):
        session.call("init")
