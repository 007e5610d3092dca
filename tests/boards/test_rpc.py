"""A library in TVM's RPC server: the same numbers as in a process of its own; errors in time; nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.boards.test_native import ADAPTIVE, make
from tests.building.adaptive_net import samples
from tvm_tinytrain.errors import BoardError, TransportError
from tvm_tinytrain.micro import GeneratedProject, Session, generate_project
from tvm_tinytrain.targets.boards import get_board, rpc_board

X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)
Y = np.array([[1, 0, -1, 0.5]], dtype=np.float32)

pytestmark = pytest.mark.host_compiler


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from tvm import rpc

    running = rpc.Server("127.0.0.1", port=9411, port_end=9499, silent=True)
    try:
        yield f"rpc://127.0.0.1:{running.port}"
    finally:
        running.terminate()


@pytest.fixture(scope="module")
def project(fake: Any, tmp_path_factory: pytest.TempPathFactory) -> GeneratedProject:
    folder = tmp_path_factory.mktemp("rpc")
    generate_project(fake, rpc_board(get_board("host")), folder).build()
    return GeneratedProject.from_directory(folder)


def test_training_over_rpc_is_that_of_a_process(project: GeneratedProject, built: Any, server: str) -> None:
    with Session(built("host")) as session:
        expected = (
            [session.step(X, Y) for _ in range(5)],
            session.read("weight"),
            session.read("initial_weight"),
        )
    for _ in range(2):  # a second session begins anew
        with Session(project, port=server) as session:
            assert session.info.board == "host" and session.time_unit == "nanoseconds"
            assert [session.step(X, Y) for _ in range(5)] == expected[0]
            np.testing.assert_array_equal(session.read("weight"), expected[1])
            np.testing.assert_array_equal(session.read("initial_weight"), expected[2])
            large = np.random.default_rng(0).integers(0, 256, (3, 10, 100)).astype(np.uint8)
            session.write("bytes", large)
            np.testing.assert_array_equal(session.read("bytes"), large)
            assert session.time("predict") > 0


def test_an_adaptation_with_native_kernels(server: str) -> None:
    images, labels = (np.stack(part) for part in zip(*samples(10), strict=True))
    module, found = make("llvm", **ADAPTIVE), []
    for port in (None, server):
        with Session(module, "host", port=port) as session:
            result = session.adapt(images, labels, iterations=2)
            found.append((result.plan, result.losses, session.trained_rows()))
    assert found[0][:2] == found[1][:2]
    for name, rows in found[0][2].items():
        np.testing.assert_array_equal(rows, found[1][2][name])


def test_a_tracker_gives_a_board(project: GeneratedProject) -> None:
    from tvm import rpc
    from tvm.rpc.tracker import Tracker

    tracker = Tracker("127.0.0.1", port=9511, port_end=9599, silent=True)
    address = ("127.0.0.1", tracker.port)
    running = rpc.Server("127.0.0.1", port=9611, port_end=9699, key="pi", tracker_addr=address, silent=True)
    try:
        with Session(project, port=f"rpc://127.0.0.1:{tracker.port}/pi") as session:
            assert session.step(X, Y) > 0
    finally:
        running.terminate()
        tracker.terminate()


def test_a_call_that_hangs_ends_and_the_server_lives_on(project: GeneratedProject, server: str) -> None:
    with Session(project, timeout_s=1.0, port=server) as session:
        started = time.monotonic()
        with pytest.raises(TransportError, match=r"no answer in 1\.0 s"):
            session.call("hang")
        assert time.monotonic() - started < 20  # on a busy machine; far below forever
    with Session(project, port=server) as session:  # waits for the session before it, which has 3 s left
        session.step(X, Y)


def test_a_crash_ends_the_session_only(project: GeneratedProject, server: str) -> None:
    """Constants are read-only everywhere; what `write_nowhere` writes to may be a heap's where the system chooses addresses."""
    with Session(project, port=server) as session:
        with pytest.raises(TransportError, match="RPC session ended"):
            session.call("write_flash")
        with pytest.raises(TransportError):
            session.read("weight")
    with Session(project, port=server) as session:
        session.step(X, Y)


@pytest.mark.needs("aarch64-linux-gnu-gcc")
def test_a_library_for_another_machine_links(fake: Any, tmp_path: Path) -> None:
    project = generate_project(fake, rpc_board(get_board("raspberry-pi-4")), tmp_path).build()
    assert "__tvm_ffi_tt_rpc_exchange" in {f.name for f in project.program.functions}


def test_what_is_wrong_is_said(fake: Any, project: GeneratedProject, built: Any, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"TVM's RPC server; start it there"):
        Session(project, port="rpc://127.0.0.1:1").open()
    with pytest.raises(BoardError, match=r"allowed rpc://host:9090"):
        Session(project, port="rpc://nowhere").open()
    with pytest.raises(BoardError, match="a board with Linux, or host"):
        Session(fake, "mps2-an500", port="rpc://127.0.0.1:9090")
    with pytest.raises(BoardError, match="one for RPC"):
        Session(built("host"), port="rpc://127.0.0.1:9090")
