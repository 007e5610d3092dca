"""Random, damaged and mutated frames into the parsers in C and Python and into the server, under sanitizers.

    python -m benchmarks.fuzz --json build/fuzz.json

Three parts, each with --inputs frames: the C server with a library (AddressSanitizer, UBSan; every reply must be a frame that
decodes), the C parser against the Python one (same frames out of the same bytes), and the Python parser fed in random cuts (no
exception, bounded memory, every undamaged frame found behind the damaged ones).
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.common import Report, parse, parser, print_table
from tests.boards.fuzzing import (
    PIECES,
    compare_parsers,
    compile_decoder,
    compile_server_fuzzer,
    random_pieces,
)
from tvm_tinytrain.micro.frames import REPLY, Frame, FrameParser, encode_frame

Advance = Callable[[float], None]
STREAMS = 5_000
SLICES = 20
"""Runs of the server, each with its own seed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    made = parser("fuzz", __doc__)
    made.add_argument(
        "--inputs", type=int, default=1_000_000, help="frames for each part (default: 1,000,000)"
    )
    made.add_argument("--seed", type=int, default=1)
    options = parse(made, argv)
    report = Report(options)
    with (
        tempfile.TemporaryDirectory(prefix="tinytrain-fuzz-") as folder,
        Progress(console=Console(stderr=True)) as shown,
    ):
        for name, part in (
            ("server in C", server),
            ("parser in C", parsers),
            ("parser in Python", python_parser),
        ):
            started = time.monotonic()
            task = shown.add_task(name, total=options.inputs)

            advance = partial(shown.advance, task)
            with report.attempt(name):
                inputs, answers, findings = part(Path(folder), options, advance)
                report.rows.append({
                    "part": name, "inputs": inputs, "frames_out": answers, "findings": len(findings),
                    "first_finding": findings[0] if findings else None, "seconds": round(time.monotonic() - started, 1),
                })  # fmt: skip
                report.at_least(f"{name}: inputs", options.inputs, inputs)
                report.equal(f"{name}: findings", 0, len(findings))
                report.at_least(f"{name}: frames out", inputs // 10, answers)
    print_table(
        "Fuzzing", ["part", "inputs", "frames out", "findings", "seconds"],
        [[r["part"], r["inputs"], r["frames_out"], r["findings"], r["seconds"]] for r in report.rows],
    )  # fmt: skip
    return report.finish()


def server(folder: Path, options: argparse.Namespace, advance: Advance) -> tuple[int, int, list[str]]:
    """Inputs, replies, findings: the sanitizers' words, or replies that do not decode."""
    program, inputs, replies = compile_server_fuzzer(folder), 0, 0
    findings: list[str] = []
    count = -(-options.inputs // SLICES)
    for piece in range(SLICES):
        seed = options.seed * SLICES + piece
        done = subprocess.run(
            [str(program), str(count), str(seed)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            findings.append(f"seed {seed}: {(done.stdout + done.stderr)[-2000:]}")
            continue
        words = done.stdout.split()
        inputs, replies = inputs + int(words[0]), replies + int(words[2])
        advance(count)
    return inputs, replies, findings


def parsers(folder: Path, options: argparse.Namespace, advance: Advance) -> tuple[int, int, list[str]]:
    """Inputs, frames that both parsers found, streams on which they differ."""
    program, rng = compile_decoder(folder), random.Random(options.seed)
    inputs, found = 0, 0
    findings: list[str] = []
    while inputs < options.inputs:
        try:
            frames, differing = compare_parsers(program, rng, STREAMS)
        except subprocess.CalledProcessError as error:
            return inputs, found, [*findings, error.stderr.decode("utf-8", "replace")[-2000:]]
        found, findings = found + frames, findings + differing
        inputs += STREAMS * PIECES
        advance(STREAMS * PIECES)
    return inputs, found, findings


def python_parser(folder: Path, options: argparse.Namespace, advance: Advance) -> tuple[int, int, list[str]]:
    """Inputs, frames found, findings: an undamaged frame that was lost, or a parser that keeps too much."""
    del folder
    rng, read, inputs, found = random.Random(options.seed), FrameParser(1 << 10), 0, 0
    findings: list[str] = []
    while inputs < options.inputs:
        noise, good = (
            random_pieces(rng, PIECES - 1),
            Frame(REPLY, 0, inputs & 0xFFFF, rng.randbytes(inputs % 40)),
        )
        stream, frames, start = noise + b"\0" + encode_frame(good), [], 0
        while start < len(stream):
            cut = rng.randrange(1, 200)
            frames += read.push(stream[start : start + cut])
            start += cut
        found += len(frames)
        if not frames or frames[-1] != good:
            findings.append(stream.hex())
        if len(read.text) > 1 << 16:
            findings.append(f"{len(read.text)} bytes of text kept")
        inputs += PIECES
        if inputs % 20_000 == 0:
            advance(20_000)
    return inputs, found, findings


if __name__ == "__main__":
    sys.exit(main())
