"""PyTorch: an ``nn.Module`` through ``torch.export``, or a program exported before."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import tvm
from tvm.relax.frontend import detach_params
from tvm.relax.frontend.torch import from_exported_program as tvm_from_exported_program

from tvm_tinytrain.errors import DTypeError, ImportModelError, TinyTrainError, UnsupportedOperatorError
from tvm_tinytrain.frontend.names import clean_name
from tvm_tinytrain.frontend.relax import from_relax
from tvm_tinytrain.frontend.tidy import fold_weights
from tvm_tinytrain.frontend.torch_converters import CONVERTERS
from tvm_tinytrain.frontend.torch_gradients import marked_gradient_stops
from tvm_tinytrain.frontend.torch_types import with_casts
from tvm_tinytrain.passes.state import with_fixed


def from_torch(module: torch.nn.Module, example_inputs: Sequence[Any] | None) -> tvm.IRModule:
    """Exports ``module`` in evaluation mode (batch norm uses its running statistics) on ``example_inputs``."""
    inputs = _tensors(example_inputs)
    training = module.training
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.export(module.eval(), inputs)
    except Exception as error:  # PyTorch raises many kinds; their first lines say what is wrong
        shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in inputs)
        hint = "check the inputs' shapes and dtypes by calling the network, then what torch.export says of it"
        raise ImportModelError(
            "frontend",
            f"torch.export with {shapes}",
            _first_line(error),
            "a network that it can export",
            hint,
        ) from error
    finally:
        module.train(training)
    _check_training(program, evaluation=True)
    return from_exported_program(program)


def _tensors(example_inputs: object) -> tuple[torch.Tensor, ...]:
    found = type(example_inputs).__name__
    if isinstance(example_inputs, (tuple, list)):
        if example_inputs and all(isinstance(t, torch.Tensor) for t in example_inputs):
            # each its own tensor: torch.export takes inputs that were given the same one for one input
            return tuple(t.detach().clone() for t in example_inputs)
        found = f"a {found} of {', '.join(type(t).__name__ for t in example_inputs) or 'nothing'}"
    hint = "pass example_inputs=(torch.zeros(1, 3, 128, 128),)"
    allowed = "a tuple with one tensor per input"
    raise ImportModelError(
        "frontend", "example_inputs", "none" if example_inputs is None else found, allowed, hint
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that PyTorch logs before it raises."""
    logs = [
        logging.getLogger(name)
        for name in ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")
    ]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


def from_exported_program(program: torch.export.ExportedProgram) -> tvm.IRModule:
    """The program as Relax, parameters named after their place in the module (``features.0.weight`` → ``features_0_weight``).

    Buffers and constants, which TVM binds into the function and `from_relax` lifts behind the parameters, are noted as fixed.
    """
    _check_dtypes(program)
    _check_inputs(program)
    _check_state(program)
    _check_training(program)
    try:
        with warnings.catch_warnings(), marked_gradient_stops(program):
            warnings.simplefilter("ignore", FutureWarning)
            mod = tvm_from_exported_program(
                with_casts(program),
                keep_params_as_input=True,
                unwrap_unit_return_tuple=True,
                custom_convert_map=CONVERTERS,
                run_ep_decomposition=False,
            )
    except TinyTrainError:
        raise
    except Exception as error:  # translation raises whatever Python or TVM raises
        raise UnsupportedOperatorError(
            "frontend",
            "torch.export program",
            _first_line(error),
            "operators of TVM's torch front end",
            "replace the operator in the model, or add a converter in frontend/torch_converters.py",
        ) from error
    mod, params = detach_params(mod)
    values = (
        dict(zip([p.name for p in mod["main"].params[-len(params["main"]) :]], params["main"], strict=True))
        if params["main"]
        else {}
    )
    parameters = len(mod["main"].params)
    mod = from_relax(mod, values, prefix="p_")
    return fold_weights(with_fixed(mod, [p.name for p in mod["main"].params[parameters:]]))


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


def _check_inputs(program: torch.export.ExportedProgram) -> None:
    """Inputs are tensors: a Python number would be bound into the graph."""
    signature = program.graph_signature
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    for name in signature.user_inputs:
        if not isinstance(name, str) or not isinstance(values.get(name), torch.Tensor):
            found = name if not isinstance(name, str) else type(values.get(name)).__name__
            raise DTypeError(
                "frontend", f"input {name}", found, "a tensor", "make a constant of it inside of the network"
            )
    outputs = len(signature.user_outputs)
    if outputs != 1:
        hint = "return what the loss needs, one tensor"
        raise ImportModelError("frontend", "the network's result", f"{outputs} tensors", "one tensor", hint)


def _check_state(program: torch.export.ExportedProgram) -> None:
    """Refuses a network that remembers: a buffer that it changes and reads. What only counts (batch norm's batches) is nothing."""
    buffers = program.graph_signature.inputs_to_buffers
    changed: dict[torch.fx.Node, torch.fx.Node] = {}  # a buffer, or what a change made of it: the buffer
    changes: set[torch.fx.Node] = set()
    for node in program.graph.nodes:
        if node.op != "call_function" or not getattr(
            getattr(node.target, "_schema", None), "is_mutable", False
        ):
            continue
        first = node.args[0] if node.args else None
        if isinstance(first, torch.fx.Node) and (first in changed or first.name in buffers):
            changes.add(node)
            changed[first] = changed[node] = changed.get(first, first)
    for value, buffer in changed.items():
        if any(user not in changes for user in value.users):
            hint = "a library computes each sample by itself: take what is remembered as an input, or leave it out"
            name = buffers[buffer.name]
            raise UnsupportedOperatorError(
                "frontend", f"buffer {name}", "changed by the network", "constants", hint
            )


_EVALUATED = (
    "dropout", "dropout_", "native_dropout", "batch_norm", "_native_batch_norm_legit_functional",
    "scaled_dot_product_attention", "lstm", "gru",
)  # fmt: skip
"""Operators of training mode that are compiled as those of evaluation mode."""


def _check_training(program: torch.export.ExportedProgram, evaluation: bool = False) -> None:
    """Refuses what draws random numbers, and normalisation by the batch's statistics where there are running ones.

    TVM makes constants of random numbers, and drops dropout whatever it is told. Dropout that does nothing is left alone. So are
    dropout and batch norm of a program that may have been exported in training mode; not where it is one of ``evaluation`` mode,
    in which the network asks for them itself.
    """
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    for node in (n for graph in graphs for n in graph.nodes if n.users):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if not evaluation and node.target.overloadpacket.__name__ in _EVALUATED:
            continue
        given = dict(zip([a.name for a in node.target._schema.arguments], node.args, strict=False))
        options = {a.name: a.default_value for a in node.target._schema.arguments} | given | node.kwargs
        training = options.get("train", options.get("training", options.get("use_input_stats", True)))
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            chance = options.get(
                "dropout", options.get("dropout_p", options.get("p") if "train" in options else 1)
            )
            found = "training mode" if chance and {"train", "training"} & options.keys() else "random numbers"
            wrong = training is not False and chance != 0
        else:
            found, wrong = (
                "the batch's statistics",
                training is True and options.get("running_mean") is not None,
            )
        if wrong:
            hint = "export the network in evaluation mode, model.eval(), without training=True, and take random numbers as an input"
            thing = f"{node.target} ({node.name})"
            raise UnsupportedOperatorError("frontend", thing, found, "evaluation of one sample", hint)
