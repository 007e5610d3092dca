"""Frames: the Python parser, the C parser against it, and the C server, with random and damaged input."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.boards.fuzzing import CAPACITY, compare_parsers, compile_decoder, compile_server_fuzzer
from tvm_tinytrain.micro.frames import (
    REPLY,
    REQUEST,
    Frame,
    FrameParser,
    cobs_decode,
    cobs_encode,
    decode_frame,
    encode_frame,
)


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


def test_a_fault_is_seen_when_its_line_is_whole_and_never_in_a_frame() -> None:
    parser = FrameParser(CAPACITY)
    parser.push(b"\0booting\n\ntt-fault: HardFault in st")
    assert parser.fault is None
    parser.push(b"ep pc=0x00000100\n")
    assert parser.fault == "tt-fault: HardFault in step pc=0x00000100"
    parser.push(b"\0")  # it was started again
    assert parser.fault is None
    parser.push(encode_frame(Frame(REPLY, 0, 3, b"\ntt-fault: text\n" * 3))[:-2])
    assert parser.fault is None


def test_an_endless_piece_takes_no_memory() -> None:
    parser = FrameParser(CAPACITY)
    for _ in range(1000):
        assert parser.push(b"x" * 4096) == []
    assert len(parser._pending) <= 2 * CAPACITY and len(parser.text) <= 4096
    frame = Frame(REQUEST, 1, 2, b"abc")
    assert parser.push(b"\0" + encode_frame(frame)) == [frame]


@pytest.mark.host_compiler
def test_parsers_agree(tmp_path: Path, fuzz_inputs: int) -> None:
    program, rng = compile_decoder(tmp_path), random.Random(7)
    for _ in range(fuzz_inputs // 20_000 + 1):
        frames, differing = compare_parsers(program, rng, 5_000)
        assert differing == []
        assert frames > 5_000


@pytest.mark.host_compiler
def test_the_server_resists_any_input(tmp_path: Path, fuzz_inputs: int) -> None:
    program = compile_server_fuzzer(tmp_path)
    done = subprocess.run([str(program), str(fuzz_inputs), "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    inputs, replies = (int(done.stdout.split()[i]) for i in (0, 2))
    assert inputs == fuzz_inputs and replies > inputs // 10
