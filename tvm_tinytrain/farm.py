"""Many boards: candidates are measured by workers that TVM's RPC tracker hands out.

A worker stands beside a board (or starts an emulator); it gets C sources and arguments, builds and runs the image, and sends outcomes.
One that dies is replaced by its `Workers`, and its share of the batch goes to another one.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from tvm import rpc, tirx

from tvm_tinytrain.board_measure import BoardMeasure, ImageError, Problem
from tvm_tinytrain.emit.kernel_set import KernelSet
from tvm_tinytrain.errors import BoardError, TinyTrainError, TransportError
from tvm_tinytrain.schedules.journal import Outcome
from tvm_tinytrain.schedules.scratch import scratch_folder
from tvm_tinytrain.targets.boards import Board, get_board

FUNCTION = "tinytrain.measure"
TRIES = 4
"""Workers that may die under one share of a batch before it is given up."""
SHARE_S = 600
"""Seconds after which a worker that answers nothing counts as dead."""
CONNECT_S = 5.0
NONE_FREE_S = 60.0
"""Seconds to wait for a first worker."""


@dataclass(frozen=True)
class Tracker:
    """Where TVM's RPC tracker listens (``python -m tvm.exec.rpc_tracker --port 9190``)."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Tracker:
        """``host:port``; BoardError for anything else."""
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isdecimal()):
            raise BoardError("farm", "tracker", text, "host:port", "e.g. 127.0.0.1:9190")
        return Tracker(host, int(port))

    def workers(self, key: str) -> int:
        """How many workers with a key there are; TransportError where no tracker answers."""
        try:
            # TVM alone would try for a minute
            socket.create_connection((self.host, self.port), timeout=CONNECT_S).close()
            servers = rpc.connect_tracker(self.host, self.port).summary()["server_info"]
        except (RuntimeError, OSError) as error:
            hint = "start it with python -m tvm.exec.rpc_tracker"
            raise TransportError("farm", f"{self.host}:{self.port}", error, "an RPC tracker", hint) from error
        return sum(server["key"] == f"server:{key}" for server in servers)

    def wait(self, key: str, seconds: float = NONE_FREE_S) -> int:
        """The number of workers, one at least; TransportError where none comes in time."""
        end = time.monotonic() + seconds
        while not (found := self.workers(key)):
            if time.monotonic() > end:
                hint = "start one with tinytrain tune-worker"
                raise TransportError("farm", f"workers for {key}", "none", "one or more", hint)
            time.sleep(0.2)
        return found


class FarmMeasure(BoardMeasure):
    """As `BoardMeasure`, on all workers of a tracker for the board at once."""

    def __init__(
        self,
        func: tirx.PrimFunc,
        board: Board,
        tracker: Tracker,
        seed: int = 0,
        *,
        none_free_s: float = NONE_FREE_S,
    ) -> None:
        super().__init__(func, board, seed)
        self.tracker, self.none_free_s = tracker, none_free_s

    def __call__(self, kernels: Mapping[str, tirx.PrimFunc]) -> dict[str, Outcome]:
        """Outcomes by name; each worker gets a share of the candidates."""
        if not kernels:
            return {}
        count = min(self.tracker.wait(self.board.name, self.none_free_s), len(kernels))
        names = list(kernels)
        shares = [{n: kernels[n] for n in names[start::count]} for start in range(count)]
        found: dict[str, Outcome] = {}
        assert self.problem.names  # made here, once, and not by all threads
        with ThreadPoolExecutor(count) as threads:
            for outcomes in threads.map(super().__call__, shares):
                found |= outcomes
        return {name: found[name] for name in names if name in found}

    def measure(self, library: KernelSet, names: list[str]) -> dict[str, Outcome]:
        """Outcomes of one image's entries, from the next free worker; from another one where it dies or its board does not start."""
        request = pack_request(self.problem, library, names)
        last: Exception | None = None
        for _ in range(TRIES):
            self.tracker.wait(self.board.name, self.none_free_s)
            try:
                session = rpc.connect_tracker(self.tracker.host, self.tracker.port).request(
                    self.board.name, session_timeout=SHARE_S
                )
                return unpack_answer(str(session.get_function(FUNCTION)(request)))
            except ImageError:
                raise
            except (
                RuntimeError,
                OSError,
                TinyTrainError,
            ) as error:  # the worker died, or has no board or tool
                last = error
        hint = "see what ends the workers; what was measured is kept"
        raise TransportError("farm", f"workers for {self.board.name}", last, "one that measures", hint)


class Workers:
    """``count`` workers for a board on this machine; those that die are replaced. A context manager.

    ``port`` is the board's, see `Session`; ``work_dir``: where they build images.
    """

    def __init__(
        self,
        board: str | Board,
        tracker: Tracker,
        count: int,
        *,
        port: str | None = None,
        work_dir: str | Path = "build/tune-worker",
    ) -> None:
        self.board, self.tracker, self.port = get_board(board), tracker, port
        self.work_dir = Path(work_dir).absolute()
        self.servers: list[Any] = [self._start() for _ in range(count)]
        self.replaced = 0
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _start(self) -> Any:
        return rpc.Server(
            "127.0.0.1" if self.tracker.host in ("127.0.0.1", "localhost") else "0.0.0.0",
            port=9090,
            port_end=9990,
            tracker_addr=(self.tracker.host, self.tracker.port),
            key=self.board.name,
            silent=True,
            server_init_callback=partial(_register, self.board.name, self.port, self.work_dir),
        )

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for index, server in enumerate(self.servers):
                if process_of(server).poll() is not None:
                    self.servers[index] = self._start()
                    self.replaced += 1

    def close(self) -> None:
        """Ends all workers."""
        self._stop.set()
        self._watcher.join()
        for server in self.servers:
            with contextlib.suppress(Exception):  # it may be dead already
                server.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def process_of(server: Any) -> Any:
    """The process (`subprocess.Popen`) of a worker."""
    return server.proc._proc


def _register(board: str, port: str | None, work_dir: Path) -> None:
    """Runs in a worker: offers the function that clients call."""
    import tvm_ffi

    tvm_ffi.register_global_func(FUNCTION, partial(_serve, board, port, work_dir), override=True)


def _serve(board: str, port: str | None, work_dir: Path, request: Any) -> str:
    """Answers one request."""
    problem, library, names = unpack_request(bytes(request))
    try:
        with scratch_folder(work_dir) as folder:
            outcomes = problem.measure(library, names, get_board(board), port, folder)
    except TinyTrainError as error:
        words = [error.stage, error.thing, str(error.found), str(error.allowed), error.hint]
        return json.dumps({"image" if isinstance(error, ImageError) else "error": words})
    return json.dumps({"outcomes": {name: asdict(outcome) for name, outcome in outcomes.items()}})


def unpack_answer(answer: str) -> dict[str, Outcome]:
    """Outcomes; ImageError where the worker could not build the image, BoardError where it could not run it."""
    content = json.loads(answer)
    if "image" in content:
        raise ImageError(*content["image"])
    if "error" in content:
        raise BoardError(*content["error"])
    return {name: Outcome(**outcome) for name, outcome in content["outcomes"].items()}


def pack_request(problem: Problem, library: KernelSet, names: Sequence[str]) -> bytes:
    """Everything that a worker needs, as an archive of arrays with a header in JSON."""
    header = {
        "names": list(names),
        "library": library.name,
        "metadata": library.metadata,
        "files": {path: base64.b64encode(content).decode() for path, content in library.files.items()},
        "arguments": problem.names,
        "written": problem.written,
        "call_s": problem.call_s,
    }
    arrays = {f"v{i}": value for i, value in enumerate(problem.values)}
    arrays |= {f"e{i}": value for i, value in enumerate(problem.expected)}
    out = io.BytesIO()
    np.savez(out, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def unpack_request(request: bytes) -> tuple[Problem, KernelSet, list[str]]:
    """Inverse of `pack_request`; runs no code of the sender's."""
    with np.load(io.BytesIO(request), allow_pickle=False) as content:
        header = json.loads(content["header"].tobytes())
        count = len(header["arguments"])
        values, expected = (tuple(content[f"{kind}{i}"] for i in range(count)) for kind in "ve")
    files = {path: base64.b64decode(text) for path, text in header["files"].items()}
    problem = Problem(
        tuple(header["arguments"]), values, expected, tuple(header["written"]), header["call_s"]
    )
    return problem, KernelSet(header["library"], files, header["metadata"], {}), header["names"]
