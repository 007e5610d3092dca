"""A library in TVM's RPC server: frames go to one packed function of an uploaded shared library, answers come back from it."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tvm_tinytrain.errors import BoardError, TransportError
from tvm_tinytrain.micro.transport import closed_error

_FUNCTION = "tt_rpc_exchange"
_ROOM = 1 << 16
_GRACE_S = 2
_CONNECT_S = 30.0


class RpcTransport:
    """Uploads `program`, a shared library, to the server at ``rpc://host:port`` or one that a tracker at
    ``rpc://host:port/key`` gives, and talks to it.

    The other side answers before its function returns, so that nothing is lost on the way: a request is never
    repeated. Raises TransportError where no server answers or it does not load the library.
    """

    repeat_s = 1e6

    def __init__(self, thing: str, address: str, program: Path) -> None:
        self._thing = thing
        self._function: Any = None
        self._request: Any = None
        self._reply: Any = None
        self._ended: str | None = None
        self._work: queue.SimpleQueue[tuple[bytes, float] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        server = _split(thing, address)
        # Neither a connection nor a call can be interrupted: they have a thread of their own, which nobody waits for.
        threading.Thread(target=self._serve, args=(server, program), daemon=True, name="rpc").start()
        try:
            ready = self._answers.get(timeout=_CONNECT_S)
        except queue.Empty:
            ready, self._ended = None, f"no answer in {_CONNECT_S} s: it may serve somebody else"
        if ready is None:
            hint = "start it there with: python -m tvm.exec.rpc_server --port 9090"
            raise TransportError("connect", f"{thing}, {address}", self._ended, "TVM's RPC server", hint)

    def _serve(self, server: tuple[str, int, str], program: Path) -> None:
        try:
            self._open(server, program)
            self._answers.put(b"")
            while (item := self._work.get()) is not None:
                data, seconds = item
                self._answers.put(self._exchange(data, math.ceil(seconds) + _GRACE_S))
        except Exception as error:  # TVM raises its own kinds, and sockets theirs
            text = str(error).strip().splitlines()
            self._ended = f"the RPC session ended: {text[-1] if text else type(error).__name__}"
            self._answers.put(None)
        self._function = self._request = self._reply = None  # the last references end the session

    def _open(self, server: tuple[str, int, str], program: Path) -> None:
        from tvm import rpc, runtime

        host, port, key = server
        remote = rpc.connect_tracker(host, port).request(key) if key else rpc.connect(host, port)
        name = f"tinytrain-{uuid.uuid4().hex}.so"
        remote.upload(str(program), name)
        module = remote.load_module(name)
        with contextlib.suppress(Exception):
            remote.remove(name)
        self._function = module[_FUNCTION]
        self._request = runtime.empty((_ROOM,), "uint8", remote.cpu(0))
        self._reply = runtime.empty((_ROOM,), "uint8", remote.cpu(0))

    def _exchange(self, data: bytes, seconds: int) -> bytes:
        sent = np.zeros(_ROOM, np.uint8)
        sent[: len(data)] = np.frombuffer(data, np.uint8)
        self._request.copyfrom(sent)
        count = int(self._function(self._request, len(data), self._reply, seconds))
        if count < 0:
            raise ValueError("the library refuses the call: it was built for another version of TVM")
        return bytes(self._reply.numpy()[:count].tobytes())

    def read(self, seconds: float) -> bytes:
        """Return the answer to what was written; b"" where there is none in time. TransportError: the session ended."""
        try:
            answer = self._answers.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return b""
        if answer is None:
            raise closed_error(self._thing, self.state(), [])
        return answer

    def write(self, data: bytes, seconds: float) -> None:
        """Send bytes; TransportError where the session has ended, or they are more than one frame."""
        if self._ended is not None:
            raise closed_error(self._thing, self._ended, [])
        if len(data) > _ROOM:
            raise TransportError(
                "transport", self._thing, f"{len(data)} bytes", f"at most {_ROOM}", "report this"
            )
        self._work.put((data, seconds))

    def console(self) -> list[str]:
        """Nothing: the server's console stays on its machine."""
        return []

    def state(self) -> str:
        """Return "running", or how the session ended."""
        return self._ended or "running"

    def close(self) -> None:
        """End the session, as soon as a call that runs has ended; a second call does nothing."""
        if self._ended is None:
            self._ended = "closed"
            self._work.put(None)


def _split(thing: str, address: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(address)
        if parts.scheme == "rpc" and parts.hostname and parts.port:
            return parts.hostname, parts.port, parts.path.strip("/")
    except ValueError:
        pass
    raise BoardError(
        "connect", f"{thing}, port", address, "rpc://host:9090, or rpc://host:9190/key", "name it so"
    )
