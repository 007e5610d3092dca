"""Random and damaged input for the frame parsers and the server; shared by the tests and `benchmarks.fuzz`."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

from tests.boards.conftest import hand_written
from tvm_tinytrain.micro.frames import Frame, FrameParser, encode_frame
from tvm_tinytrain.targets.runtime_files import runtime_folder

HERE = Path(__file__).parent
CAPACITY = 128
PIECES = 4
"""Frames in one stream of `compare_parsers`."""
SANITIZED = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]


def compile_sanitized(sources: list[Path], includes: list[Path], program: Path, *flags: str) -> Path:
    command = ["gcc", *STRICT, *SANITIZED, *(f"-I{folder}" for folder in includes), *flags]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    return program


def compile_decoder(folder: Path) -> Path:
    """The C parser as a program that decodes streams, under sanitizers."""
    runtime = runtime_folder()
    sources = [HERE / "fuzz" / "decode_stream.c", runtime / "src" / "frame.c"]
    return compile_sanitized(
        sources, [runtime / "include"], folder / "decode_stream", f"-DCAPACITY={CAPACITY}"
    )


def compile_server_fuzzer(folder: Path) -> Path:
    """The server with a library and a source of requests, under sanitizers."""
    runtime = runtime_folder()
    for name, content in hand_written().files.items():
        (folder / name).write_bytes(content)
    sources = [HERE / "fuzz" / "fuzz_server.c", folder / "tt_fake.c"]
    sources += [runtime / "src" / name for name in ("frame.c", "paint.c", "server.c")]
    return compile_sanitized(sources, [folder, runtime / "include"], folder / "fuzz_server")


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


def compare_parsers(program: Path, rng: random.Random, streams: int) -> tuple[int, list[str]]:
    """Decode streams of `PIECES` frames with both parsers.

    Returns the frames that both found, and the streams (hexadecimal) on which they differ. CalledProcessError:
    a sanitizer has found something in the C one.
    """
    made = [random_pieces(rng, PIECES) + b"\0" for _ in range(streams)]
    data = b"".join(struct.pack("<I", len(stream)) + stream for stream in made)
    done = subprocess.run([str(program)], input=data, capture_output=True, check=True)
    frames, differing = 0, []
    for stream, line in zip(made, done.stdout.decode().split("\n"), strict=False):
        words = [word for word in line.split() if word != "bad"]
        expected = [
            struct.pack("<BBH", frame.kind, frame.code, frame.id) + frame.payload
            for frame in FrameParser(1 << 16).push(stream)
            if 8 + len(frame.payload) <= CAPACITY
        ]
        frames += len(words)
        if words != [frame.hex() for frame in expected]:
            differing.append(stream.hex())
    return frames, differing
