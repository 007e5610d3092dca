"""A bad line: frames are damaged, cut, doubled, lost and late; the results are those of a good line."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.boards.conftest import EMULATED, HOST
from tvm_tinytrain.errors import TransportError
from tvm_tinytrain.micro import Session
from tvm_tinytrain.micro.project import GeneratedProject
from tvm_tinytrain.micro.runners import Connection, StartOptions
from tvm_tinytrain.micro.transport import Transport

X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16)
Y = np.array([[1, 0, -1, 0.5]], dtype=np.float32)


class BadLine:
    """Passes a transport's bytes on, and spoils one in `one_in` of its reads and writes."""

    def __init__(self, good: Transport, seed: int, one_in: int) -> None:
        self._good, self._rng, self._one_in = good, random.Random(seed), one_in
        self._late: list[bytes] = []
        self.repeat_s = 0.002  # this line loses so much that waiting would be all of the test's time
        self.faults: Counter[str] = Counter()

    def _spoil(self, data: bytes) -> list[bytes]:
        late, self._late = self._late, []
        if not data or self._rng.randrange(self._one_in):
            return [data, *late]
        at = self._rng.randrange(len(data))
        kind = self._rng.choice(("corrupt", "truncate", "double", "lose", "delay", "noise"))
        self.faults[kind] += 1
        match kind:
            case "corrupt":
                return [data[:at] + bytes([data[at] ^ self._rng.randrange(1, 256)]) + data[at + 1 :], *late]
            case "truncate":
                return [data[:at], *late]
            case "double":
                return [data, data, *late]
            case "delay":
                self._late = [data]
                return late
            case "noise":
                return [self._rng.randbytes(at + 1), data, *late]
        return late

    def write(self, data: bytes, seconds: float) -> None:
        for piece in self._spoil(data):
            self._good.write(piece, seconds)

    def read(self, seconds: float) -> bytes:
        return b"".join(self._spoil(self._good.read(seconds)))

    def console(self) -> list[str]:
        return self._good.console()

    def state(self) -> str:
        return self._good.state()

    def close(self) -> None:
        self._good.close()


class BadProject(GeneratedProject):
    """A built project with a bad line to its board."""

    def __init__(self, project: GeneratedProject, seed: int, one_in: int) -> None:
        super().__init__(project.folder, project.board, project.library)
        self._seed, self._one_in = seed, one_in
        self.line: BadLine | None = None

    def open_transport(self, options: StartOptions | None = None) -> Connection:
        good = super().open_transport(options)
        self.line = BadLine(good.transport, self._seed, self._one_in)
        return Connection(self.line, good.counter)


def train(session: Session, steps: int) -> tuple[list[float], bytes, bytes, int]:
    rng = np.random.default_rng(3)
    losses = []
    for _ in range(steps):
        losses.append(session.step(X + rng.normal(0, 0.1, X.shape).astype(np.float32), Y))
        session.write("bytes", rng.integers(0, 256, (3, 10, 100)).astype(np.uint8))
    steps_done = int(session.read("steps")[0])
    return losses, session.read("weight").tobytes(), session.read("bytes").tobytes(), steps_done


@pytest.mark.parametrize(
    ("board", "wanted"),
    [
        pytest.param(*HOST.values, 1000, marks=HOST.marks),
        pytest.param(*EMULATED.values, 1000, marks=EMULATED.marks),
    ],
)
def test_results_are_those_of_a_good_line(built: Any, board: str, wanted: int) -> None:
    steps = wanted * 3 // 5
    with Session(built(board)) as session:
        expected = train(session, steps)
    project = BadProject(built(board), seed=5, one_in=6)
    with Session(project) as session:
        found = train(session, steps)
        statistics = session.link_statistics
    assert found == expected
    assert found[3] == steps  # no step was run twice
    assert project.line is not None
    assert project.line.faults.total() >= wanted
    assert min(project.line.faults.values()) >= wanted // 12
    assert statistics.repeated_requests > wanted // 4
    with Session(built(board)) as session:
        session.call("step")


@pytest.mark.host_compiler
def test_a_line_that_is_always_bad_ends_in_time(built: Any) -> None:
    class Deaf(BadLine):
        def _spoil(self, data: bytes) -> list[bytes]:
            return [bytes(byte ^ 0x55 for byte in data)]

    with Session(built("host"), timeout_s=1.0) as session:
        connection = session._connection
        assert connection is not None and session._link is not None
        session._link._transport = Deaf(connection.transport, 1, 1)
        with pytest.raises(TransportError, match=r"no answer in 1\.0 s"):
            session.call("step")
