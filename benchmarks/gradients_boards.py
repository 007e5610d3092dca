"""Networks on the emulated Cortex-M7: one sample's gradients, against the same network on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.gradients_networks import Comparison, built, partial_plan, reference_of
from benchmarks.gradients_reference import Reference, relative
from tvm_tinytrain.build import TrainModule
from tvm_tinytrain.config import FullTrain, Update
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.session import Session

BOARD = "mps2-an500"
TARGET = "c -mcpu=cortex-m7"
NETWORKS = ("cnn_1d", "ds_cnn", "resnet8", "mcunet", "mobilenet_v2_035")


def measure_board(name: str) -> tuple[str, Comparison]:
    """(update, the tensor that differs most); small networks are trained whole, backbones in part, for the serial line's sake."""
    reference = reference_of(name)
    small = sum(layer.weights for layer in reference.layers) < 100_000
    update: Update = FullTrain() if small else partial_plan(reference.layers)
    board = built(reference, target=TARGET, update=update, accumulate=True)
    host = built(reference, update=update, accumulate=True)
    errors = dict(_differences(reference, board, host))
    tensor = max(errors, key=lambda n: errors[n])
    return type(update).__name__, Comparison(errors[tensor] / 1e-5, errors[tensor], 0.0, tensor, len(errors))


def _differences(reference: Reference, board: TrainModule, host: TrainModule) -> Iterator[tuple[str, float]]:
    sample = reference.sample
    with InProcess(host) as library, Session(board, board=BOARD) as session:
        loss = library.step(sample.x, sample.label, "accumulate")
        for tensor in session.tensors.values():
            if tensor.role in ("input", "label"):
                session.write(tensor.name, sample.x if tensor.role == "input" else sample.label)
        session.call("accumulate")
        yield "loss", relative(session.read("loss").reshape(-1), np.array([loss]))
        for entry in host.metadata["tensors"]:
            if entry["role"] == "grad":
                exact = library.read(entry["name"]).astype(np.float64)
                yield entry["name"], relative(session.read(entry["name"]), exact)
