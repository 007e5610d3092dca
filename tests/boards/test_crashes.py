"""Boards that crash, hang or are killed: an error with their last words in time, and nothing left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.boards.conftest import EMULATED, HOST
from tvm_tinytrain.errors import TransportError
from tvm_tinytrain.micro import Session, process

BOTH = pytest.mark.parametrize("board", [HOST, EMULATED])


LATE_S = 20.0
"""What should take a second or none must not take this long, on a machine that is as busy as it may be."""


def children() -> set[int]:
    """Return the process ids of this process's living children."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@BOTH
@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("overflow_stack", "stack overflow"),
        ("write_flash", "in write_flash"),
        ("write_nowhere", "address.*0x30000000"),
    ],
)
def test_a_fault_is_reported_in_the_error(built: Any, board: str, entry: str, words: str) -> None:
    before = children()
    with Session(built(board)) as session:
        started = time.monotonic()
        with pytest.raises(TransportError, match=words) as caught:
            session.call(entry)
        assert time.monotonic() - started < LATE_S
    assert f"in {entry}" in str(caught.value)
    assert children() == before


@pytest.mark.emulator
def test_a_fault_names_the_function(built: Any) -> None:
    with (
        Session(built("mps2-an500")) as session,
        pytest.raises(TransportError, match=r"pc=0x\w+ \(write_now"),
    ):
        session.call("write_nowhere")


@BOTH
def test_an_entry_that_hangs(built: Any, board: str) -> None:
    before = children()
    with Session(built(board), timeout_s=1.0) as session:
        started = time.monotonic()
        with pytest.raises(TransportError, match=r"no answer in 1\.0 s, running; its console is empty"):
            session.call("hang")
        assert 0.9 < time.monotonic() - started < LATE_S
    assert children() == before
    with Session(built(board)) as session:
        session.call("step")


@BOTH
def test_an_entry_that_fails(built: Any, board: str) -> None:
    with Session(built(board)) as session:
        with pytest.raises(
            TransportError, match=r"entry fail: found status -4: a tensor .* out of its range"
        ):
            session.call("fail")
        session.call("step")


@BOTH
def test_a_killed_board(built: Any, board: str) -> None:
    with Session(built(board)) as session:
        (pid,) = [child for child in children() if built(board).program_path.name in command_line(child)]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TransportError, match="ended by signal 9"):
            session.call("step")
        with pytest.raises(TransportError):
            session.read("weight")


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@BOTH
def test_a_full_pipe(built: Any, board: str) -> None:
    with Session(built(board), timeout_s=0.5) as session:
        with pytest.raises(TransportError):
            session.call("hang")
        transport = session._connection.transport  # type: ignore[union-attr]
        with pytest.raises(TransportError, match=r"of 1048576 bytes taken in 0\.5 s"):
            transport.write(bytes(1 << 20), 0.5)


def test_the_console_holds_what_was_written_before_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thread that never gets its turn.
    monkeypatch.setattr(process._Console, "_listen", lambda console: None)
    reader, writer = os.pipe()
    command = ["sh", "-c", "echo one >&2; printf 'two\\nthr' >&2; echo answer; exec sleep 60"]
    child = process.start_process(command, stdin=subprocess.DEVNULL, stdout=writer)
    try:
        assert os.read(reader, 64) == b"answer\n"
        assert child.console() == ["one", "two"]
    finally:
        child.close()
        os.close(reader)
        os.close(writer)


def test_a_program_that_prints_without_end_has_a_console() -> None:
    child = process.start_process(["yes", "words"], stdin=subprocess.DEVNULL)
    try:
        while not child.console():
            pass
        assert set(child.console()) == {"words"}
    finally:
        child.close()
    assert child.console()[0] == "words"


@BOTH
def test_many_sessions_leave_nothing_behind(built: Any, board: str) -> None:
    with Session(built(board)):
        pass
    processes, files = children(), descriptors()
    for _ in range(5):
        with Session(built(board)) as session:
            session.call("step")
    assert children() == processes
    assert descriptors() == files


@pytest.mark.host_compiler
def test_no_temporary_folder_is_left(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Session(fake, "host") as session:
        assert list(tmp_path.iterdir()) == []  # gone as soon as the board runs
        session.call("step")
    with pytest.raises(ZeroDivisionError), Session(fake, "host"):
        _ = 1 // 0
    assert list(tmp_path.iterdir()) == []


@BOTH
def test_a_session_in_a_short_lived_thread_lives_on(built: Any, board: str) -> None:
    session = Session(built(board))
    thread = threading.Thread(target=session.open)
    thread.start()
    thread.join()
    with session:
        session.call("step")


@pytest.mark.host_compiler
def test_threads_take_turns(built: Any) -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(1, 16)).astype(np.float32) for _ in range(3)]
    found: dict[int, list[bytes]] = {0: [], 1: [], 2: []}
    with Session(built("host")) as session:
        expected = [session.predict(x).tobytes() for x in samples]

        def predict(i: int) -> None:
            found[i] += [session.predict(samples[i]).tobytes() for _ in range(40)]

        threads = [threading.Thread(target=predict, args=(i,)) for i in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {i: [value] * 40 for i, value in enumerate(expected)}


@pytest.mark.host_compiler
def test_a_session_is_closed_while_another_thread_waits(built: Any) -> None:
    said: list[TransportError] = []
    session = Session(built("host"), timeout_s=LATE_S).open()

    def hang() -> None:
        with pytest.raises(TransportError) as caught:
            session.call("hang")
        said.append(caught.value)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.3)
    session.close()
    thread.join(LATE_S)
    assert len(said) == 1  # its program ended, or the session is closed: what the thread sees first


@pytest.mark.host_compiler
def test_a_process_with_many_open_files(built: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine allows fewer than 2048 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with Session(built("host")) as session:
            session.call("step")
            session.write("bytes", np.zeros((3, 10, 100), np.uint8))
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@BOTH
def test_a_killed_host_takes_the_board_with_it(built: Any, board: str) -> None:
    project = built(board)
    script = textwrap.dedent(
        f"""
        import sys
        from tvm_tinytrain.micro import GeneratedProject, Session
        project = GeneratedProject.from_directory({str(project.folder)!r})
        with Session(project, timeout_s=60) as session:
            print("open", flush=True)
            session.call("hang")
        """
    )
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert host.stdout is not None and host.stdout.readline() == "open\n"
        time.sleep(0.3)
        boards = {int(pid) for pid in os.listdir("/proc") if pid.isdigit()}
        boards = {pid for pid in boards if str(project.program_path) in command_line(pid)}
        assert boards
    finally:
        host.kill()
        host.wait()
    deadline = time.monotonic() + LATE_S
    while time.monotonic() < deadline and any(command_line(pid) for pid in boards):
        time.sleep(0.05)
    assert not [pid for pid in boards if str(project.program_path) in command_line(pid)]
