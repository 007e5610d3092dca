"""Child processes that never outlive this one, and whose last words are kept."""

from __future__ import annotations

import collections
import ctypes
import os
import queue
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_CONSOLE_LINES = 1000
_LONGEST_LINE = 4096
_PIPE_BYTES = 1 << 20
"""More than a pipe holds, so that one read takes all of it, and a program that prints without end is not read without end."""


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Starter:
    """Starts processes from one thread that lives as long as this process.

    The kernel's parent-death signal is sent when the *thread* that started the child ends, and a session may
    be made in a short-lived one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self._work: queue.SimpleQueue[tuple[Future[Process], tuple[object, ...]]] = queue.SimpleQueue()

    def start(self, *arguments: object) -> Process:
        with self._lock:
            if self._pid != os.getpid():  # first use, or the first in a forked process
                self._pid = os.getpid()
                self._work = queue.SimpleQueue()
                threading.Thread(target=self._serve, args=(self._work,), daemon=True, name="starter").start()
        result: Future[Process] = Future()
        self._work.put((result, arguments))
        return result.result()

    @staticmethod
    def _serve(work: queue.SimpleQueue[tuple[Future[Process], tuple[object, ...]]]) -> None:
        while True:
            result, arguments = work.get()
            try:
                result.set_result(Process(*arguments))  # type: ignore[arg-type]
            except BaseException as error:
                result.set_exception(error)


class _Console:
    """The last lines that come through a pipe, read by a thread of its own so that the writer never waits."""

    def __init__(self, reader: int) -> None:
        os.set_blocking(reader, False)
        self._stream = os.fdopen(reader, "rb", buffering=0)
        self._lock = threading.Lock()
        self._lines: collections.deque[str] = collections.deque(maxlen=_CONSOLE_LINES)
        self._rest = b""
        self._thread = threading.Thread(target=self._listen, daemon=True, name="console")
        self._thread.start()

    def lines(self) -> list[str]:
        """What was written before this call, whether or not the thread has run since: on a busy machine a board's answer
        came before the lines that it had printed first."""
        with self._lock:
            self._take()
            return list(self._lines)

    def join(self, timeout: float) -> None:
        """Wait until every writer has closed its end."""
        self._thread.join(timeout)

    def _listen(self) -> None:
        waiting = select.poll()
        waiting.register(self._stream, select.POLLIN)
        more = True
        while more:
            waiting.poll()
            with self._lock:
                more = self._take()
        with self._lock:
            self._stream.close()
            if self._rest:
                self._lines.append(self._rest.decode("utf-8", "replace"))

    def _take(self) -> bool:
        """Take all that the pipe holds now; return whether more may come."""
        received = b"" if self._stream.closed else self._stream.read(_PIPE_BYTES)
        if received:
            *lines, rest = (self._rest + received).split(b"\n")
            self._lines.extend(line.decode("utf-8", "replace").rstrip("\r") for line in lines)
            self._rest = rest[-_LONGEST_LINE:]
        return received != b""


class Process:
    """One child process; make it with `start_process`."""

    def __init__(
        self, command: Sequence[str], stdin: int, stdout: int | None, inherited: Sequence[int]
    ) -> None:
        """`stdout` None: standard output belongs to the console as standard error does."""
        reader, writer = os.pipe()
        try:
            self._child = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=writer if stdout is None else stdout,
                stderr=writer,
                pass_fds=tuple(inherited),
                close_fds=True,
                preexec_fn=_die_with_parent,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._console = _Console(reader)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def exit_code(self) -> int | None:
        """Return the exit code (minus the signal's number for a killed process), or None while it runs."""
        return self._child.poll()

    def console(self) -> list[str]:
        """Return the last lines that it wrote: all that it wrote before this call, and after its end an unfinished one too."""
        if self.exit_code() is not None:
            self._console.join(timeout=2)
        return self._console.lines()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it ended."""
        try:
            self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End it, whatever it does; a second call does nothing."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        self._console.join(timeout=2)


_STARTER = _Starter()


def start_process(
    command: Sequence[str], *, stdin: int, stdout: int | None = None, inherited: Sequence[int] = ()
) -> Process:
    """Start a child process that dies with this one.

    Parameters
    ----------
    command
        Program and arguments.
    stdin, stdout
        File descriptors; without `stdout` the output is kept as console lines.
    inherited
        Further descriptors that the child gets under the same numbers.
    """
    return _STARTER.start(command, stdin, stdout, inherited)
