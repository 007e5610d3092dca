"""Chooses the front end by the type of what was given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm

from tvm_tinytrain.errors import ImportModelError, ToolMissingError


def import_model(
    model: Any, *, example_inputs: Sequence[Any] | None = None, params: Mapping[str, Any] | None = None
) -> tvm.IRModule:
    """An IRModule with one function ``main`` and the parameters' values in the attribute ``tt.values``.

    ``model`` is a Relax IRModule (with ``params`` by name where they are not in the module), a ``torch.export.ExportedProgram``,
    an ``nn.Module`` with ``example_inputs``, an ``onnx.ModelProto``, or a path to .pt2, .onnx or Relay text (.relay, .txt), whose
    values come from ``params``, else from the .params file of the same name beside it.
    """
    if params is not None and not isinstance(model, (tvm.IRModule, str, Path)):
        hint = "leave params out"
        raise ImportModelError(
            "frontend", "params", "values", f"none: a {type(model).__name__} has its own", hint
        )
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
    _check_file(path)
    if path.suffix == ".pt2":
        from tvm_tinytrain.frontend.torch_export import from_exported_program

        return from_exported_program(read_program(path))
    if path.suffix == ".onnx":
        try:
            import onnx
        except ModuleNotFoundError as error:
            raise ToolMissingError(
                "frontend",
                "package onnx",
                "not installed",
                "onnx >= 1.16",
                "pip install 'tvm_tinytrain[onnx]'",
            ) from error

        from tvm_tinytrain.frontend.onnx import from_onnx

        return from_onnx(_read(path, lambda: onnx.load(str(path))))
    if path.suffix in (".relay", ".txt"):
        from tvm_tinytrain.frontend.relay_text import from_relay_text

        beside = path.with_suffix(".params")
        values = params if params is not None else beside.read_bytes() if beside.is_file() else {}
        return from_relay_text(_read(path, lambda: path.read_text(encoding="utf-8")), values)
    hint = (
        "weights alone are no network: torch.export.save(torch.export.export(model, inputs), path)"
        if path.suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
        else "convert the model first"
    )
    raise ImportModelError("frontend", "path", path.name, ".pt2, .onnx, .relay or .txt", hint)


def read_program(path: Path) -> Any:
    """Return the ``torch.export.ExportedProgram`` of a .pt2 file; ImportModelError where there is none."""
    import torch

    _check_file(path)
    return _read(path, lambda: _quietly(lambda: torch.export.load(str(path))))


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ImportModelError("frontend", "path", str(path), "an existing file", "check the path")


def _quietly(load: Callable[[], Any]) -> Any:
    """Without the traceback that PyTorch logs before it raises."""
    log = logging.getLogger("torch.export")
    before = log.disabled
    log.disabled = True
    try:
        return load()
    finally:
        log.disabled = before


def _read(path: Path, load: Callable[[], Any]) -> Any:
    """What ``load`` reads; libraries raise many kinds of errors for a file that is damaged or of another kind."""
    try:
        return load()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImportModelError(
            "frontend", path.name, reason, f"a whole {path.suffix} file", "export or copy it again"
        ) from error
