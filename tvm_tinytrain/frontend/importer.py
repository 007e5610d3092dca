"""Chooses the front end by the type of what was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm

from tvm_tinytrain.errors import ImportModelError


def import_model(
    model: Any, *, example_inputs: Sequence[Any] | None = None, params: Mapping[str, Any] | None = None
) -> tvm.IRModule:
    """An IRModule with one function ``main`` and the parameters' values in the attribute ``tt.values``.

    ``model`` is a Relax IRModule (with ``params`` by name where they are not in the module), a ``torch.export.ExportedProgram``,
    an ``nn.Module`` with ``example_inputs``, an ``onnx.ModelProto``, or a path to .pt2, .onnx or Relay text.
    """
    if isinstance(model, tvm.IRModule):
        from tvm_tinytrain.frontend.relax import from_relax

        return from_relax(model, params)
    if isinstance(model, (str, Path)):
        return _from_path(Path(model), params)
    kinds = {f"{k.__module__.split('.')[0]}.{k.__name__}" for k in type(model).__mro__}
    if "torch.ExportedProgram" in kinds:
        from tvm_tinytrain.frontend.torch_export import from_exported_program

        return from_exported_program(model)
    if "torch.Module" in kinds:
        from tvm_tinytrain.frontend.torch_export import from_torch

        return from_torch(model, example_inputs)
    if "onnx.ModelProto" in kinds:
        from tvm_tinytrain.frontend.onnx import from_onnx

        return from_onnx(model)
    raise ImportModelError(
        "frontend",
        "model",
        type(model).__name__,
        "tvm.IRModule, torch.export.ExportedProgram, torch.nn.Module, onnx.ModelProto, or a path to .pt2, .onnx, .relay",
        "export the network with torch.export.export first",
    )


def _from_path(path: Path, params: Mapping[str, Any] | None) -> tvm.IRModule:
    if not path.is_file():
        raise ImportModelError("frontend", "path", str(path), "an existing file", "check the path")
    if path.suffix == ".pt2":
        import torch

        from tvm_tinytrain.frontend.torch_export import from_exported_program

        return from_exported_program(torch.export.load(str(path)))
    if path.suffix == ".onnx":
        import onnx

        from tvm_tinytrain.frontend.onnx import from_onnx

        return from_onnx(onnx.load(str(path)))
    if path.suffix in (".relay", ".txt"):
        from tvm_tinytrain.frontend.relay_text import from_relay_text

        return from_relay_text(path.read_text(), params or {})
    raise ImportModelError(
        "frontend", "path", path.name, ".pt2, .onnx, .relay or .txt", "convert the model first"
    )
