"""A serial line, by the emulated board's UART and a pseudo terminal: what a real board uses."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.patience import LATE_S, wait_until
from tvm_tinytrain.errors import BoardError, TransportError
from tvm_tinytrain.micro import Session, generate_project
from tvm_tinytrain.micro.process import Process, start_process
from tvm_tinytrain.micro.project import GeneratedProject
from tvm_tinytrain.micro.runners import StartOptions
from tvm_tinytrain.micro.transport import SerialTransport
from tvm_tinytrain.targets.boards import get_board

pytestmark = pytest.mark.emulator
X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)
Y = np.array([[1, 0, -1, 0.5]], dtype=np.float32)


class Flashed(GeneratedProject):
    """A project whose board is there already: flashing is somebody else's work."""

    def flash(self, options: StartOptions | None = None) -> GeneratedProject:
        return self


@pytest.fixture
def serial_board(fake: Any, tmp_path: Path) -> Iterator[tuple[GeneratedProject, str, Process]]:
    """Yield a project, the device of its board's UART, and the emulator."""
    board = replace(get_board("mps2-an500"), port="uart_cmsdk", runner="serial")
    generate_project(fake, board, tmp_path)
    project = Flashed(tmp_path, board, "fake").build()
    command = ["qemu-system-arm", "-M", "mps2-an500", "-display", "none"]
    command += ["-monitor", f"unix:{tmp_path}/monitor,server,nowait"]
    command += ["-serial", "pty", "-kernel", str(project.program_path)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    emulator = start_process(command, stdin=nothing)
    os.close(nothing)
    try:
        found = wait_until(
            lambda: re.search(r"/dev/pts/\d+", "\n".join(emulator.console())), emulator.console
        )
        yield project, found[0], emulator
    finally:
        emulator.close()


def test_training_over_a_serial_line(built: Any, serial_board: tuple[GeneratedProject, str, Process]) -> None:
    with Session(built("host")) as session:
        expected = [session.step(X, Y) for _ in range(5)]
    project, device, _ = serial_board
    for _ in range(2):  # a second session finds the board as the first left it
        with Session(project, port=device) as session:
            session.reset()
            assert [session.step(X, Y) for _ in range(5)] == expected
            array = np.arange(3000, dtype=np.uint32).astype(np.uint8).reshape(3, 10, 100)
            session.write("bytes", array)
            np.testing.assert_array_equal(session.read("bytes"), array)
            assert session.time_unit == "cycles"
            assert session.time("step") > 0
            assert session.memory()["stack_bytes"] > 100


def test_a_fault_comes_over_the_same_line(serial_board: tuple[GeneratedProject, str, Process]) -> None:
    project, device, _ = serial_board
    with Session(project, port=device, timeout_s=LATE_S) as session:
        started = time.monotonic()
        told = r"crashed.*\s+tt-fault: MemManage in write_nowhere .*0x30000000"
        with pytest.raises(TransportError, match=told):
            session.call("write_nowhere")
        assert time.monotonic() - started < LATE_S / 2, "told at the call's time-out only"


def test_a_board_that_restarts_is_another_one(
    serial_board: tuple[GeneratedProject, str, Process], tmp_path: Path
) -> None:
    """Its reset button, a watchdog, a brown-out: what it answers then comes from the initial weights."""
    project, device, _ = serial_board
    with Session(project, port=device, timeout_s=LATE_S) as session:
        first = session.step(X, Y)
        assert session.step(X, Y) < first
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(tmp_path / "monitor"))
            answer = monitor.recv(1000)
            monitor.sendall(b"system_reset\n")
            while answer.count(b"(qemu)") < 2:
                answer += monitor.recv(1000)
        told = "found the board was started again since the session began, and what it had learnt is gone"
        for ask in (lambda: session.step(X, Y), lambda: session.read("weight"), session.reset):
            with pytest.raises(TransportError, match=told):
                ask()
    with Session(project, port=device) as session:
        assert session.step(X, Y) == first


def test_noise_before_the_first_frame(serial_board: tuple[GeneratedProject, str, Process]) -> None:
    project, device, _ = serial_board
    line = SerialTransport("board", device, 115_200)
    line.write(b"\x05\x00noise\x00\x00\xff", 1.0)
    line.close()
    with Session(project, port=device) as session:
        session.call("step")


def test_a_device_that_is_not_there(serial_board: tuple[GeneratedProject, str, Process]) -> None:
    with pytest.raises(TransportError, match=r"ttyNONE.*a serial device"):
        Session(serial_board[0], port="/dev/ttyNONE").open()
    with pytest.raises(BoardError, match="no port"):
        Session(serial_board[0]).open()
