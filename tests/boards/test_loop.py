"""The letters of tt_loop.h do what a host-driven session does."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvm_tinytrain as tt
from examples.exports import step
from tests.boards.test_exports import run
from tests.building.adaptive_net import SHAPE, network, samples
from tvm_tinytrain.micro.exports import export_project
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.targets.cmake_boards import cmake_folder


@pytest.mark.host_compiler
@pytest.mark.needs("cmake")
def test_the_letters_of_a_task_adaptive_library(tmp_path: Path) -> None:
    """`t` adds gradients, though the library has a step too, and `u` applies them; `n` begins another task."""
    example, update = (torch.zeros(SHAPE),), tt.TaskAdaptive(candidates=2)
    # CMake has a target "all" in every build
    library = tt.build(network(), "host", example_inputs=example, update=update, name="all")
    given = samples(2)
    export_project(library, "cmake", tmp_path)
    run(["cmake", "-S", ".", "-B", "build", f"-Dtvm_tinytrain_DIR={cmake_folder()}"], tmp_path)
    run(["cmake", "--build", "build"], tmp_path)
    fisher = [b"f" + step(*sample)[1:] for sample in given]
    predict = b"p" + given[0][0].tobytes()
    task = [b"b", *fisher, b"s", *(step(*sample) for sample in given), predict, b"u", predict]
    sent = b"".join([*task, b"s", b"b", b"n", *task])
    program = tmp_path / "build" / "all_loop"
    answers = subprocess.run([program], input=sent, capture_output=True, check=True).stdout
    with InProcess(library) as host:
        assert {"step", "accumulate"} <= set(host.entries)

        def call(entry: str, answer: str | None = None, sample: Any = None) -> bytes:
            if sample is not None:
                host.write("x", sample[0])
                host.write("label", np.array([sample[1]], np.int32))
            host.call(entry)
            return bytes(4) + (host.read(answer).tobytes() if answer else b"")

        def whole_task() -> bytes:
            measured = [call("fisher_begin"), *(call("fisher", None, s) for s in given), call("select")]
            trained = [call("accumulate", "loss", s) for s in given]
            outputs = [
                call("predict", "output", given[0]),
                call("apply"),
                call("predict", "output", given[0]),
            ]
            return b"".join([*measured, *trained, *outputs])

        first = whole_task()
        expected = first + struct.pack("<ii", -10, -10) + call("release") + whole_task()
    assert len(answers) == len(expected)
    assert struct.unpack_from("<iii", answers, len(first)) == (-10, -10, 0)
    np.testing.assert_allclose(
        np.frombuffer(answers, "<f4"), np.frombuffer(expected, "<f4"), rtol=1e-4, atol=1e-6
    )
