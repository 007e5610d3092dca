"""Linux boards: a server that listens on TCP, and ssh by a stand-in that runs the command here."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.patience import LATE_S, wait_until
from tvm_tinytrain.errors import BoardError, TransportError
from tvm_tinytrain.micro import Session, generate_project
from tvm_tinytrain.micro.process import start_process
from tvm_tinytrain.micro.project import GeneratedProject
from tvm_tinytrain.targets.boards import get_board

pytestmark = pytest.mark.host_compiler
X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)
Y = np.array([[1, 0, -1, 0.5]], dtype=np.float32)


@pytest.fixture
def remote(fake: Any, tmp_path: Path) -> GeneratedProject:
    """Return a project for a Linux board whose processor is this machine's."""
    board = replace(get_board("host"), name="remote", runner="ssh")
    return generate_project(fake, board, tmp_path / "project").build()


def test_a_server_that_listens(built: Any, remote: GeneratedProject) -> None:
    with Session(built("host")) as session:
        expected = [session.step(X, Y) for _ in range(5)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    server = start_process([str(remote.program_path), "--listen=0"], stdin=nothing)
    os.close(nothing)
    try:
        found = wait_until(
            lambda: re.search(r"listening on port (\d+)", "\n".join(server.console())), server.console
        )
        with Session(remote, port=f"127.0.0.1:{found[1]}") as session:
            assert [session.step(X, Y) for _ in range(5)] == expected
            array = np.arange(3000, dtype=np.uint32).astype(np.uint8).reshape(3, 10, 100)
            session.write("bytes", array)
            np.testing.assert_array_equal(session.read("bytes"), array)
        assert server.wait(LATE_S)
    finally:
        server.close()
    with pytest.raises(TransportError, match="a listening server"):
        Session(remote, port=f"127.0.0.1:{found[1]}").open()


def test_copied_and_started_over_ssh(
    built: Any, remote: GeneratedProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / "far"
    far.mkdir()
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "scp": f'#!/bin/sh\n[ "$4" = pi@board:tinytrain-library ] && cp "$3" {far}/tinytrain-library\n',
        "ssh": f'#!/bin/sh\ncd {far} && exec "$4"\n',
    }
    for name, script in scripts.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with Session(remote, port="pi@board") as session:
        assert session.step(X, Y) > 0
    assert (far / "tinytrain-library").stat().st_size == remote.program_path.stat().st_size
    shutil.rmtree(far)
    with pytest.raises(BoardError, match=r"flash: remote, scp: found exit code"):
        Session(remote, port="pi@board").open()


def test_where_is_the_board(remote: GeneratedProject) -> None:
    with pytest.raises(BoardError, match=r"an address is needed.*pi@"):
        Session(remote).open()
    for port in ("127.0.0.1:99999", "127.0.0.1:x", "::1:80"):
        with pytest.raises(BoardError, match=rf"port: found {port}; allowed \[user@\]host or host:1234"):
            Session(remote, port=port).open()
