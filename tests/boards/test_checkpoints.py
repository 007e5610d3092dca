"""A session's checkpoints: what a board has learnt goes to a file, and from there to another board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from tests.boards.conftest import EMULATED, HOST
from tests.building.adaptive_net import SHAPE, network, request, samples
from tests.compiled import loaded
from tvm_tinytrain.errors import CheckpointError, TransportError
from tvm_tinytrain.micro import Session
from tvm_tinytrain.micro.checkpoint import Checkpoint


def build(**options: Any) -> tt.TrainModule:
    return tt.build(
        network(),
        "c -mcpu=cortex-m7",
        example_inputs=(torch.zeros(SHAPE),),
        loss=tt.Prototypical(),
        optimizer=tt.Adam(0.01),
        accumulate=True,
        name="m",
        **options,
    )


@pytest.fixture(scope="module")
def module() -> tt.TrainModule:
    return build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(memory="20KB", compute=0.6))


@pytest.mark.parametrize("board", [HOST, EMULATED])
def test_what_one_board_learnt_another_loads(module: tt.TrainModule, board: str, tmp_path: Path) -> None:
    images, labels = (np.stack(part) for part in zip(*samples(10), strict=True))
    path = tmp_path / "task.tt"
    with Session(module, board) as session:
        with pytest.raises(CheckpointError):
            session.save(path)  # nothing is trained
        session.adapt(images, labels, iterations=3)
        assert session.save(path) == path
        expected, rows = session.predict(images[0]), session.trained_rows()
        assert any(r.size for r in rows.values())
    with Session(module, "host") as other:
        before = other.predict(images[0])
        damaged = tmp_path / "damaged.tt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError):
            other.load(damaged)
        np.testing.assert_array_equal(other.predict(images[0]), before)
        other.load(path)
        np.testing.assert_allclose(other.predict(images[0]), expected, rtol=1e-6, atol=1e-7)
        for name, values in other.trained_rows().items():
            np.testing.assert_array_equal(values, rows[name])


@pytest.mark.host_compiler
def test_a_checkpoint_is_of_what_is_installed_and_not_of_the_next_request(tmp_path: Path) -> None:
    module = build(update=tt.TaskAdaptive(candidates=4), budget=tt.Budget(memory="20KB"))
    none = "found nothing is trained; .*install or select first"
    with Session(module, "host") as session:
        with pytest.raises(CheckpointError, match=none):
            session.save(tmp_path / "fresh.tt")
        session.write("request", request(module, {1: [7], 3: [0, 1]}))
        session.call("install")
        first = session.save(tmp_path / "first.tt").read_bytes()
        session.write("request", request(module, {3: [4, 5]}))
        assert session.save(tmp_path / "second.tt").read_bytes() == first
        assert Checkpoint.from_bytes(first).bitmap == request(module, {1: [7], 3: [0, 1]}).tobytes()
        session.call("release")
        with pytest.raises(CheckpointError, match=none):
            session.save(tmp_path / "released.tt")


@pytest.mark.host_compiler
def test_a_library_with_a_fixed_plan_has_no_checkpoint(tmp_path: Path) -> None:
    with Session(build(update=tt.LastLayer()), "host") as session:
        with pytest.raises(CheckpointError):
            session.save(tmp_path / "x.tt")
        with pytest.raises(CheckpointError, match="task-adaptive"):
            session.trained_rows()


@pytest.mark.host_compiler
def test_the_arena_by_bytes(built: Any) -> None:
    with Session(built("host")) as session:
        weight = session.tensors["weight"]
        assert session.read_arena(weight.offset, weight.bytes) == session.read("weight").tobytes()
        session.write_arena(weight.offset + 4, np.float32(7).tobytes())
        assert session.read("weight").reshape(-1)[1] == 7
        check_the_ends_of_the_arena(session, session.info.arena_bytes)


@pytest.mark.host_compiler
def test_the_arena_by_bytes_in_this_process() -> None:
    with loaded(build(update=tt.LastLayer())) as library:
        check_the_ends_of_the_arena(library, library.arena.size)


def check_the_ends_of_the_arena(library: Any, size: int) -> None:
    """All bytes can be read and written, none outside, and nothing is written where some lie outside."""
    whole = library.read_arena(0, size)
    assert len(whole) == size and library.read_arena(size, 0) == b""
    for offset, count in ((size - 2, 4), (10**9, 4), (-1, 4), (-8, 4), (0, -1), (0, size + 1), (1.5, 4)):
        with pytest.raises(
            TransportError, match=rf"{count} bytes from {offset} on; allowed bytes 0 to {size}"
        ):
            library.read_arena(offset, count)
    for offset, count in ((-8, 4), (size - 2, 4), (-1, size + 2), (1.5, 4)):
        with pytest.raises(TransportError, match=f"allowed bytes 0 to {size}"):
            library.write_arena(offset, b"\xa5" * count)
    assert library.read_arena(0, size) == whole
