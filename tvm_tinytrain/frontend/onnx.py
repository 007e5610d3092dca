"""ONNX: inference graphs of opset 13 and above, through TVM's own front end."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence

import onnx
import tvm
from onnx.shape_inference import InferenceError

from tvm_tinytrain.errors import ImportModelError, ShapeError, TinyTrainError, UnsupportedOperatorError
from tvm_tinytrain.frontend.onnx_converters import Importer, unsupported
from tvm_tinytrain.frontend.onnx_static import make_static
from tvm_tinytrain.frontend.relax import from_relax
from tvm_tinytrain.frontend.tidy import tidy_parameters

MIN_OPSET = 13


def from_onnx(
    model: onnx.ModelProto, *, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tvm.IRModule:
    """An ONNX model as a Relax module ``main(inputs…, parameters…)`` with the initialisers' values in ``tt.values``.

    Parameters keep their initialisers' names, cleaned to C identifiers (``fc.weight`` → ``fc_weight``). What the graph computes
    from constants and shapes is computed here; the exporter's shape arithmetic does not reach the compiler.

    Parameters
    ----------
    model
        float32, opset 13 or above, operators of the default domain.
    input_shapes
        Shapes of inputs by name, for inputs whose shape in the model has symbols. Without it, an input whose first dimension
        is its only symbolic one gets a batch of 1 there: a device holds one sample.

    Raises
    ------
    ImportModelError
        The model breaks ONNX's own rules, or its opset is too old.
    UnsupportedOperatorError
        The nodes that cannot be imported, by operator and name: control flow, training mode, other domains, quantised graphs.
    ShapeError, DTypeError
        A shape stays symbolic, or a tensor is not float32.
    """
    opset = _check(model)
    try:
        static = make_static(model, opset, {n: tuple(s) for n, s in (input_shapes or {}).items()})
        onnx.checker.check_model(static)
        importer = Importer({}, "float32", keep_params_in_input=True, sanitize=False)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):  # it prints before it raises
            warnings.simplefilter("ignore")
            mod = importer.from_onnx(static.graph, opset)
        return tidy_parameters(from_relax(mod))
    except TinyTrainError:
        raise
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise ImportModelError("onnx", "model", first, "a valid ONNX model", "export it again") from error
    except InferenceError as error:
        raise ShapeError(
            "onnx",
            "shape inference",
            str(error).strip().splitlines()[-1],
            "shapes that fit",
            "check the export",
        ) from error


def _check(model: onnx.ModelProto) -> int:
    """The opset of the default domain; raises for what no later step could explain as well."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    opset = int(opsets.get("ai.onnx", 0))
    if not model.graph.node and not opsets:  # protobuf finds an empty model in many a file
        raise ImportModelError("onnx", "model", "no graph", "a valid ONNX model", "export it again")
    if opset < MIN_OPSET:
        raise ImportModelError(
            "onnx",
            "opset",
            opset,
            f"{MIN_OPSET} and above",
            f"convert it: onnx.version_converter.convert_version(model, {MIN_OPSET})",
        )
    problems = [node for node in model.graph.node if unsupported(node)]
    if problems:
        shown = "; ".join(f"{n.op_type} ({n.name or n.output[0]}): {unsupported(n)}" for n in problems[:5])
        raise UnsupportedOperatorError(
            "onnx",
            f"{len(problems)} of {len(model.graph.node)} nodes",
            shown,
            "float inference operators of the default domain",
            "export the float network in inference mode (model.eval())",
        )
    stored = [tensor.name for tensor in model.graph.initializer]
    twice = (
        [name for name in dict.fromkeys(stored) if stored.count(name) > 1]
        if len({*stored}) < len(stored)
        else []
    )
    if twice:
        raise ImportModelError("onnx", f"initialiser {twice[0]}", "two values", "one", "export it again")
    known = {value.name for value in (*model.graph.input, *model.graph.initializer)} | {""}
    for node in model.graph.node:
        unknown = [name for name in node.input if name not in known]
        if unknown:
            raise ImportModelError(
                "onnx",
                f"{node.op_type} ({node.name or node.output[0]})",
                f"input {unknown[0]!r}",
                "outputs of nodes above, inputs and initialisers",
                "export it again",
            )
        known.update(node.output)
    return opset
