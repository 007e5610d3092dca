"""Whole networks through every front end: what they compute is what PyTorch computes."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
import tvm

from benchmarks.networks import zoo
from tests.frontend.relay_writer import export_program, write_relay
from tests.frontend.running import Batch
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.frontend.onnx import from_onnx
from tvm_tinytrain.frontend.relay_text import from_relay_text
from tvm_tinytrain.passes.fold_batch_norm import FoldBatchNorm
from tvm_tinytrain.passes.lower_layers import LowerLayers
from tvm_tinytrain.passes.state import get_layers, get_values

NETWORKS = ("mobilenet_v2_035", "mcunet", "resnet8", "ds_cnn", "cnn_1d", "autoencoder")
Load = Callable[[torch.nn.Module, tuple[int, ...], torch.export.ExportedProgram], tvm.IRModule]
ROUTES: dict[str, Load] = {
    "relay": lambda model, shape, program: from_relay_text(*write_relay(program)),
    "relay with metadata": lambda model, shape, program: from_relay_text(
        *write_relay(program, metadata=True)
    ),
    "onnx": lambda model, shape, program: from_onnx(export_onnx(model, shape, folded=False)),
    "onnx folded": lambda model, shape, program: import_model(export_onnx(model, shape, folded=True)),
    "torch": lambda model, shape, program: import_model(program),
}


class Imported(NamedTuple):
    """A network, and its imports by all routes in one build: equal kernels are compiled once."""

    model: torch.nn.Module
    shape: tuple[int, ...]
    batch: Batch


@pytest.fixture(scope="module", params=NETWORKS)
def imported(request: pytest.FixtureRequest) -> Imported:
    network = zoo()[request.param]
    model, shape = network.make(), network.input_shape
    program = export_program(model, shape)
    batch = Batch({name: partial(load, model, shape, program) for name, load in ROUTES.items()})
    return Imported(model, shape, batch)


def export_onnx(model: torch.nn.Module, shape: tuple[int, ...], *, folded: bool) -> onnx.ModelProto:
    """Opset 13 with batch norms folded as the exporter does by default, or opset 17 with all nodes; symbolic batch."""
    options = {} if folded else {"do_constant_folding": False, "training": torch.onnx.TrainingMode.PRESERVE}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(shape),), buffer, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}},
            opset_version=13 if folded else 17, **options,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("route", ROUTES)
def test_output_equals_pytorch(imported: Imported, route: str) -> None:
    """‖Δ‖₂ / ‖y‖₂ against float64 is at most 1e-5, or three times what PyTorch's own float32 is off."""
    x = torch.randn(imported.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = copy.deepcopy(imported.model).double()(x.double()).numpy()
        torchs = imported.model(x).numpy()
    norm = np.linalg.norm(exact)
    allowed = max(1e-5, 3 * np.linalg.norm(torchs - exact) / norm)
    assert np.linalg.norm(imported.batch.run(route, x) - exact) / norm <= allowed


@pytest.mark.parametrize("route", ["relay", "onnx"])
def test_parameters_keep_their_names(imported: Imported, route: str) -> None:
    names = {n.replace(".", "_") for n in imported.model.state_dict() if "num_batches" not in n}
    found = set(get_values(imported.batch.module(route)))
    assert found == {n if n[0].isalpha() else f"v{n}" for n in names}


def test_layers_are_the_same_by_all_routes(imported: Imported) -> None:
    tables = {}
    for route in ROUTES:
        layers = get_layers(LowerLayers()(FoldBatchNorm()(imported.batch.module(route))))
        rows = [(layer.kind, layer.weight_shape, layer.macs, layer.bias is None) for layer in layers]
        tables[route] = sorted(rows)  # exporters order branches differently
    assert tables["torch"]
    for route, table in tables.items():
        assert table == tables["torch"], route


def test_constants_of_the_metadata_section_are_parameters(imported: Imported) -> None:
    count = sum("num_batches" not in n for n in imported.model.state_dict())
    found = get_values(imported.batch.module("relay with metadata"))
    assert set(found) == {f"constant_{i}" for i in range(count)}
