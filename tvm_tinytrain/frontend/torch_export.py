"""PyTorch: an ``nn.Module`` through ``torch.export``, or a program exported before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import tvm
from tvm.relax.frontend import detach_params
from tvm.relax.frontend.torch import from_exported_program as tvm_from_exported_program

from tvm_tinytrain.errors import DTypeError, ImportModelError, UnsupportedOperatorError
from tvm_tinytrain.frontend.names import clean_name
from tvm_tinytrain.frontend.relax import from_relax
from tvm_tinytrain.frontend.torch_converters import CONVERTERS


def from_torch(module: torch.nn.Module, example_inputs: Sequence[Any] | None) -> tvm.IRModule:
    """Exports ``module`` in evaluation mode (batch norm uses its running statistics) on ``example_inputs``."""
    if not example_inputs:
        raise ImportModelError(
            "frontend",
            "example_inputs",
            "none",
            "a tuple with one tensor per input",
            "pass example_inputs=(torch.zeros(1, 3, 128, 128),)",
        )
    training = module.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.export(module.eval(), tuple(example_inputs))
    finally:
        module.train(training)
    return from_exported_program(program)


def from_exported_program(program: torch.export.ExportedProgram) -> tvm.IRModule:
    """The program as Relax, parameters named after their place in the module (``features.0.weight`` → ``features_0_weight``)."""
    _check_dtypes(program)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            mod = tvm_from_exported_program(
                program,
                keep_params_as_input=True,
                unwrap_unit_return_tuple=True,
                custom_convert_map=CONVERTERS,
            )
    except (AssertionError, NotImplementedError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedOperatorError(
            "frontend",
            "torch.export program",
            first,
            "operators of TVM's torch front end",
            "replace the operator in the model",
        ) from error
    mod, params = detach_params(mod)
    values = (
        dict(zip([p.name for p in mod["main"].params[-len(params["main"]) :]], params["main"], strict=True))
        if params["main"]
        else {}
    )
    return from_relax(mod, values)


def _check_dtypes(program: torch.export.ExportedProgram) -> None:
    """Refuses floating-point parameters other than float32 before TVM meets them: its own complaint names no parameter."""
    for name, tensor in program.state_dict.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            found = str(tensor.dtype).removeprefix("torch.")
            raise DTypeError(
                "frontend",
                f"parameter {clean_name(name)}",
                found,
                "float32",
                "convert the network with model.float()",
            )
