"""Boards whose frames are whole and whose answers are nonsense: a TransportError, whatever they say."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tvm_tinytrain.errors import TransportError
from tvm_tinytrain.micro.frames import REPLY, Frame, FrameParser, encode_frame
from tvm_tinytrain.micro.protocol import Command, Link, read_info
from tvm_tinytrain.micro.remote import RemoteLibrary
from tvm_tinytrain.micro.transport import TcpTransport

INFO = struct.pack("<8I", 1, 1024, 100, 4, 1, 1, 1000, 100) + b"n\0v\0d\0b\0"
ENTRIES = struct.pack("<I", 1) + b"step\0"
WAIT_S = 20.0


def tensor(bytes_: int = 8, name: bytes = b"x\0", axes: int = 1) -> bytes:
    """A page of one tensor, float32[2]."""
    return struct.pack("<I4B6I3I", 1, 0, 0, axes, 0, 2, 0, 0, 0, 0, 0, bytes_, 0, 0) + name


@contextmanager
def board(**answers: bytes) -> Iterator[TcpTransport]:
    """A server that answers a command with what stands under its name."""
    given = {"info": INFO, "tensors": tensor(), "entries": ENTRIES, **answers}
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        parser = FrameParser(1 << 16)
        with connection:
            while received := connection.recv(1 << 16):
                for frame in parser.push(received):
                    name = Command(frame.code).name.lower()
                    payload = frame.payload if name == "sync" else given[name]
                    connection.sendall(encode_frame(Frame(REPLY, 0, frame.id, payload)))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    transport = TcpTransport("liar", "127.0.0.1", listener.getsockname()[1])
    try:
        yield transport
    finally:
        transport.close()
        thread.join(WAIT_S)
        listener.close()


def connected(transport: TcpTransport) -> RemoteLibrary:
    link = Link(transport, "liar")
    link.connect(WAIT_S)
    return RemoteLibrary(link, read_info(link, WAIT_S))


def test_what_a_board_says_rightly_is_taken() -> None:
    with board(call=struct.pack("<iQ", 0, 7)) as transport:
        library = connected(transport)
        assert library.tensors["x"].shape == (2,) and library.entries == ("step",)
        assert library.call("step", 1, WAIT_S) == 7


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"tensors": tensor(name=b"x")}, "tensors from 0: found 45 bytes.*descriptions of tensors"),
        ({"tensors": tensor()[:20]}, "tensors from 0: found 20 bytes"),
        ({"tensors": tensor(12)}, r"tensor x: found 12 bytes for float32\[2\]"),
        ({"tensors": tensor(axes=7)}, "tensor x: found dtype 0, role 0, 7 axes"),
        ({"tensors": b"\xff"}, "tensors from 0: found none"),
        ({"entries": struct.pack("<I", 1) + b"step"}, "entries from 0: found 8 bytes.*end in a zero byte"),
        ({"entries": b""}, "entries from 0: found none"),
        ({"info": b"?"}, "info: found 3f"),
    ],
)
def test_nonsense_is_refused_when_the_session_starts(answers: dict[str, bytes], message: str) -> None:
    with board(**answers) as transport, pytest.raises(TransportError, match=message):
        connected(transport)


@pytest.mark.parametrize(
    ("command", "use"),
    [
        ("call", lambda library: library.call("step", 1, WAIT_S)),
        ("reset", lambda library: library.reset(WAIT_S)),
        ("memory", lambda library: library.memory()),
        ("read", lambda library: library.read("x")),
    ],
)
def test_short_answers_are_refused(command: str, use: Callable[[RemoteLibrary], object]) -> None:
    with board(**{command: b"abc"}) as transport:
        library = connected(transport)
        with pytest.raises(TransportError, match="found 3 bytes"):
            use(library)


@pytest.mark.parametrize("host", ["a..b", "h" * 300, "127.0.0.1"])
def test_an_address_that_is_none(host: str) -> None:
    with pytest.raises(TransportError, match="a listening server"):
        TcpTransport("board", host, 99_999)
