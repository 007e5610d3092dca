"""Frames: the Python parser, the C parser against it, and the C server, with random and damaged input."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.boards.conftest import hand_written
from tvm_tinytrain.micro.frames import (
    REQUEST,
    Frame,
    FrameParser,
    cobs_decode,
    cobs_encode,
    decode_frame,
    encode_frame,
)
from tvm_tinytrain.targets.runtime_files import runtime_folder

HERE = Path(__file__).parent
CAPACITY = 128
SANITIZED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]


@given(st.one_of(st.binary(max_size=600), st.binary(max_size=4).map(lambda b: b * 300)))
def test_cobs_round_trip(data: bytes) -> None:
    encoded = cobs_encode(data)
    assert 0 not in encoded
    assert len(encoded) <= len(data) + len(data) // 254 + 1
    assert cobs_decode(encoded) == data


@pytest.mark.parametrize(
    ("data", "encoded"),
    [
        (b"", "01"),
        (b"\0", "0101"),
        (b"\0\0", "010101"),
        (b"\x11\x22\0\x33", "0311220233"),
        (b"\x11\0\0\0", "0211010101"),
        (bytes(range(1, 255)), "ff" + bytes(range(1, 255)).hex()),
        (b"\0" + bytes(range(1, 255)), "01ff" + bytes(range(1, 255)).hex()),
        (bytes(range(1, 256)), "ff" + bytes(range(1, 255)).hex() + "02ff"),
        (bytes([*range(2, 256), 0]), "ff" + bytes(range(2, 256)).hex() + "0101"),
    ],
)
def test_cobs_examples(data: bytes, encoded: str) -> None:
    assert cobs_encode(data).hex() == encoded


@given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 65535), st.data())
def test_a_damaged_frame_is_no_frame(payload: bytes, code: int, identifier: int, data: st.DataObject) -> None:
    frame = Frame(REQUEST, code, identifier, payload)
    encoded = encode_frame(frame)[1:-1]
    assert decode_frame(encoded) == frame
    at = data.draw(st.integers(0, len(encoded) - 1))
    assert decode_frame(encoded[:at]) is None
    flipped = bytes([*encoded[:at], encoded[at] ^ data.draw(st.integers(1, 255)), *encoded[at + 1 :]])
    assert decode_frame(flipped.replace(b"\0", b"")) != frame


@given(st.lists(st.binary(max_size=50), max_size=5), st.lists(st.integers(1, 30), min_size=1))
def test_the_cuts_of_a_stream_do_not_matter(payloads: list[bytes], cuts: list[int]) -> None:
    frames = [Frame(REQUEST, 1, i, payload) for i, payload in enumerate(payloads)]
    stream = b"console text\n" + b"".join(map(encode_frame, frames))
    parser, received, position = FrameParser(CAPACITY), [], 0
    while position < len(stream):
        cut = cuts[position % len(cuts)]
        received += parser.push(stream[position : position + cut])
        position += cut
    assert received == frames
    assert (parser.text + parser.unfinished_text.encode()).startswith(b"console text\n")


def test_an_endless_piece_takes_no_memory() -> None:
    parser = FrameParser(CAPACITY)
    for _ in range(1000):
        assert parser.push(b"x" * 4096) == []
    assert len(parser._pending) <= 2 * CAPACITY and len(parser.text) <= 4096
    frame = Frame(REQUEST, 1, 2, b"abc")
    assert parser.push(b"\0" + encode_frame(frame)) == [frame]


def random_pieces(rng: random.Random, count: int) -> bytes:
    """Return so many good, damaged and too long frames, with noise between them."""
    stream = bytearray()
    for _ in range(count):
        choice = rng.getrandbits(32)
        size = (0, 1, 20, CAPACITY - 8, CAPACITY - 7, CAPACITY, 300, 5)[choice & 7]
        payload = rng.randbytes(size) if choice & 8 else bytes(size)
        kind, code, identifier = choice >> 24, choice >> 16 & 255, choice >> 8 & 0xFFFF
        piece = bytearray(encode_frame(Frame(kind, code, identifier, payload)))
        at = int(rng.random() * len(piece))
        match choice >> 4 & 7:
            case 0:
                piece[at] ^= 1 << (choice >> 8 & 7)
            case 1:
                piece[at] = 0
            case 2:
                del piece[at:]
            case 3:
                piece += rng.randbytes(3)
        stream += piece
    return bytes(stream)


def compile_sanitized(sources: list[Path], includes: list[Path], program: Path, *flags: str) -> Path:
    command = ["gcc", *STRICT, *SANITIZED, *(f"-I{folder}" for folder in includes), *flags]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    return program


@pytest.mark.host_compiler
def test_parsers_agree(tmp_path: Path, fuzz_inputs: int) -> None:
    runtime = runtime_folder()
    sources = [HERE / "fuzz" / "decode_stream.c", runtime / "src" / "frame.c"]
    program = tmp_path / "decode_stream"
    compile_sanitized(sources, [runtime / "include"], program, f"-DCAPACITY={CAPACITY}")
    rng = random.Random(7)
    for _ in range(fuzz_inputs // 20_000 + 1):
        streams = [random_pieces(rng, 4) + b"\0" for _ in range(5_000)]
        data = b"".join(struct.pack("<I", len(stream)) + stream for stream in streams)
        done = subprocess.run([str(program)], input=data, capture_output=True, check=True)
        for stream, line in zip(streams, done.stdout.decode().split("\n"), strict=False):
            words = [word for word in line.split() if word != "bad"]
            expected = [
                struct.pack("<BBH", frame.kind, frame.code, frame.id) + frame.payload
                for frame in FrameParser(1 << 16).push(stream)
                if 8 + len(frame.payload) <= CAPACITY
            ]
            assert words == [frame.hex() for frame in expected], stream.hex()


@pytest.mark.host_compiler
def test_the_server_resists_any_input(tmp_path: Path, fuzz_inputs: int) -> None:
    runtime = runtime_folder()
    for name, content in hand_written().files.items():
        (tmp_path / name).write_bytes(content)
    sources = [HERE / "fuzz" / "fuzz_server.c", tmp_path / "tt_fake.c"]
    sources += [runtime / "src" / name for name in ("frame.c", "paint.c", "server.c")]
    program = compile_sanitized(sources, [tmp_path, runtime / "include"], tmp_path / "fuzz_server")
    done = subprocess.run([str(program), str(fuzz_inputs), "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    inputs, replies = (int(done.stdout.split()[i]) for i in (0, 2))
    assert inputs == fuzz_inputs and replies > inputs // 10
