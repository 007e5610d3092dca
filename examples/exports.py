"""A library as other people's tools build it: bare-metal firmware, a Zephyr module, an Arduino library, a CMake project.

    python examples/exports.py --out build/exports

builds a library that trains the last layer of the demo's network, writes each kind of export, compiles the bare-metal one with
its own Makefile, starts it on the emulated board and teaches it ten digits by the one-letter commands of ``tt_loop.h``. The
README.md in each folder says how its tool takes it. The same from a shell, for a library of yours:

    tinytrain project network.tar --kind zephyr -o build/exports/zephyr
"""

from __future__ import annotations

import argparse
import os
import shlex
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tvm_tinytrain as tt
from examples.arguments import at_least_one
from examples.demo_data import demo_network, load_support_query
from tvm_tinytrain.early_checks import check_folder
from tvm_tinytrain.micro.exports import export_project

KINDS = ("bare-metal", "zephyr", "arduino", "cmake")
BOARD = "mps2-an500"


def main(arguments: list[str] | None = None) -> int:
    """Runs the example with the words of a command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build/exports"), help="folder to write (default: build/exports)"
    )
    parser.add_argument("--samples", type=at_least_one, default=10, help="digits to learn (default: 10)")
    options = parser.parse_args(arguments)
    try:
        check_folder(options.out)
        run(options.out, options.samples)
    except (tt.TinyTrainError, RuntimeError) as error:
        print(f"exports: error: {error}", file=sys.stderr)
        return 1
    return 0


def run(out: Path, samples: int) -> None:
    """Build, write every kind of export, and teach the bare-metal one; RuntimeError where its firmware fails."""
    images, labels, _, _ = load_support_query(0)
    module = tt.build(
        demo_network(), "c -mcpu=cortex-m7", example_inputs=(torch.zeros(1, *images.shape[1:]),),
        optimizer=tt.SGD(lr=0.01), update=tt.LastLayer(), name="digits",
    )  # fmt: skip
    for kind in KINDS:
        files = export_project(module, kind, out / kind, BOARD if kind == "bare-metal" else None)
        print(f"{out / kind}: {len(files)} files, begin with README.md")
    firmware = out / "bare-metal"
    subprocess.run(["make", "-s"], cwd=firmware, check=True)
    count = min(samples, len(images))
    commands = [step(image, label) for image, label in zip(images[:count], labels[:count], strict=True)]
    losses = step_answers(talk(firmware, b"".join(commands)), count)
    print(f"trained on {count} digits on {BOARD}; losses {', '.join(f'{loss:.2f}' for loss in losses)}")


def step(image: np.ndarray, label: Any) -> bytes:
    """The command that trains on one sample: its letter, the label as int32, the image as float32."""
    return b"t" + struct.pack("<i", int(label)) + np.ascontiguousarray(image, "<f4").tobytes()


def step_answers(answers: bytes, count: int) -> list[float]:
    """The losses of `count` steps; RuntimeError where the firmware answered less, or an error."""
    pairs = list(struct.iter_unpack("<if", answers))
    if len(pairs) != count or any(status for status, _ in pairs):
        raise RuntimeError(f"{count} steps: found the answers {pairs}; allowed status 0 and a loss for each")
    return [loss for _, loss in pairs]


def talk(folder: Path, commands: bytes, seconds: float = 300.0) -> bytes:
    """Runs the firmware of a bare-metal export on its emulated board, fed with commands until their end; returns its answers.

    Raises RuntimeError if the emulator has not ended well in this time.
    """
    ways = [
        folder / "in",
        folder / "out",
    ]  # names, as the emulator hands over a line of 160 characters at most
    for way in ways:
        way.unlink(missing_ok=True)
        os.mkfifo(way)
    # a make around this one would print its own lines, and hand its options down
    own = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    made = subprocess.run(
        ["make", "-n", "run", "IN=in", "OUT=out"], cwd=folder, env=own, capture_output=True, text=True, check=True
    )  # fmt: skip
    board = subprocess.Popen(shlex.split(made.stdout.strip().splitlines()[-1]), cwd=folder)
    answers = bytearray()

    def listen() -> None:
        with ways[1].open("rb") as stream:
            answers.extend(stream.read())

    def speak() -> None:  # opening waits for the other side, which may never come
        with ways[0].open("wb") as stream:
            stream.write(commands)

    sides = [threading.Thread(target=side, daemon=True) for side in (listen, speak)]
    try:
        for side in sides:
            side.start()
        code = board.wait(seconds)
        for side in sides:
            side.join(10)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{folder}: the emulator has not ended after {seconds:.0f} s") from error
    finally:
        board.kill()
        board.wait()
    if code != 0:
        raise RuntimeError(f"{folder}: the emulator ended with {code}; allowed 0")
    return bytes(answers)


if __name__ == "__main__":
    raise SystemExit(main())
