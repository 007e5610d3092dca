"""For tests: a PyTorch network as Relay text and parameter file, in the form in which TVM 0.19 printed and saved them.

Attributes stand where they differ from Relay's defaults, every call has its comment with a type, batch norms are tuples,
convolutions have their bias in ``nn.bias_add``. Constants go into the parameter file, or into the metadata section.
"""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import tvm

Emit = Callable[["Writer", list[Any], dict[str, Any]], str]
OPERATORS: dict[str, Emit] = {}


def export_program(module: torch.nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.export.export(module.eval(), (torch.zeros(shape),))


def write_relay(program: torch.export.ExportedProgram, *, metadata: bool = False) -> tuple[str, bytes]:
    """The text and the content of the .params file, which holds nothing with ``metadata``."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    state = {**program.state_dict, **program.constants}
    writer = Writer(metadata)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in targets:
                if "num_batches_tracked" not in targets[node.name]:
                    writer.parameter(node.name, targets[node.name], state[targets[node.name]])
            else:
                writer.input(node.name, tuple(node.meta["val"].shape))
        elif node.op == "call_function":
            args = [writer.values.get(a, a) if isinstance(a, torch.fx.Node) else a for a in node.args]
            args = [[writer.values[x] for x in a] if _is_nodes(a) else a for a in args]
            name = str(node.target).removeprefix("aten.").split(".")[0]
            writer.shapes = [_shape(a) for a in node.args]
            text = OPERATORS[name](writer, args, dict(node.kwargs))
            writer.values[node] = text if text.startswith("%") else writer.bind(text, _shape(node))
        elif node.op == "output":
            return writer.finish(writer.values[node.args[0][0]])
        writer.values.setdefault(node, writer.names.get(node.name, ""))
    raise AssertionError("a graph without output")


def _is_nodes(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], torch.fx.Node)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.meta["val"].shape) if isinstance(value, torch.fx.Node) else ()


def type_text(shape: tuple[int, ...]) -> str:
    return f"Tensor[({', '.join(map(str, shape))}), float32]" if shape else "float32"


def attributes(**values: Any) -> str:
    def show(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:g}f"
        if isinstance(value, str):
            return f'"{value}"'
        return str(list(value)) if isinstance(value, tuple) else str(value)

    return "".join(f", {name}={show(value)}" for name, value in values.items() if value is not None)


@dataclass
class Writer:
    """``values`` maps graph nodes to what stands for them in the text: ``%x``, ``%3``, ``meta[relay.Constant][0]``."""

    metadata: bool
    values: dict[Any, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    params: list[str] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def input(self, name: str, shape: tuple[int, ...]) -> None:
        self.names[name] = f"%{name}"
        text = type_text(shape)
        self.params.append(f"%{name}: {text} /* ty={text} span=aten::conv2d_0.{name}:0:0 */")

    def parameter(self, node: str, name: str, value: torch.Tensor) -> None:
        shape = tuple(value.shape)
        if self.metadata:
            self.names[node] = f"meta[relay.Constant][{len(self.tensors)}] /* ty={type_text(shape)} */"
        else:
            name = name if name[0].isalpha() else f"v{name}"
            self.names[node] = f"%{name}"
            self.params.append(f"%{name}: {type_text(shape)} /* ty={type_text(shape)} */")
        self.tensors[name] = value.detach()

    def bind(self, text: str, shape: tuple[int, ...]) -> str:
        number = len(self.lines)
        self.lines.append(f"  %{number} = {text} /* ty={type_text(shape)} */;")
        return f"%{number}"

    def finish(self, result: str) -> tuple[str, bytes]:
        body = "\n".join(self.lines)
        text = f'#[version = "0.0.5"]\ndef @main({", ".join(self.params)}) {{\n{body}\n  {result}\n}}\n'
        arrays = {name: tvm.runtime.tensor(value.numpy().copy()) for name, value in self.tensors.items()}
        if not self.metadata:
            return text, bytes(tvm.runtime.save_param_dict(arrays))
        return text + "\n#[metadata]\n" + metadata_section(list(arrays.values())), b""


def metadata_section(tensors: list[Any]) -> str:
    """The JSON of a Map {"relay.Constant": Array of relay.Constant}, whose tensors stand base64-coded behind the nodes."""
    head = len(bytes(tvm.runtime.save_param_dict({}))) + 9  # a list of one tensor named "t", without its head
    blobs = [bytes(tvm.runtime.save_param_dict({"t": t}))[head:] for t in tensors]
    nodes: list[dict[str, Any]] = [{"type_key": ""}]
    nodes.append({"type_key": "Map", "keys": ["relay.Constant"], "data": [2]})
    nodes.append({"type_key": "Array", "data": list(range(3, 3 + len(tensors)))})
    for index in range(len(tensors)):
        attrs = {"_checked_type_": "0", "data": str(index), "span": "0", "virtual_device_": "0"}
        nodes.append({"type_key": "relay.Constant", "attrs": attrs})
    graph = {"root": 1, "nodes": nodes, "b64ndarrays": [base64.b64encode(b).decode() for b in blobs]}
    return json.dumps(graph | {"attrs": {"tvm_version": "0.19.0"}}, indent=2)


def operator(*names: str) -> Callable[[Emit], Emit]:
    def register(emit: Emit) -> Emit:
        OPERATORS.update(dict.fromkeys(names, emit))
        return emit

    return register


def _pads(padding: Any) -> tuple[int, ...] | None:
    return (*padding, *padding) if any(padding) else None


def _unless(value: Any, default: Any) -> Any:
    value = tuple(value) if isinstance(value, list) else value
    return None if value == default else value


@operator("conv1d", "conv2d")
def convolution(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    x, weight, *rest = args
    rank = len(w.shapes[1]) - 2
    bias, stride, padding, dilation, groups = [
        *rest,
        *[None, [1] * rank, [0] * rank, [1] * rank, 1][len(rest) :],
    ]
    ones = (1,) * rank
    text = attributes(
        strides=_unless(stride, ones),
        padding=_pads(padding),
        dilation=_unless(dilation, ones),
        groups=_unless(groups, 1),
        channels=w.shapes[1][0],
        kernel_size=w.shapes[1][2:],
    )
    y = f"nn.conv{rank}d({x}, {weight}{text})"
    return y if bias is None else f"nn.bias_add({w.bind(y, ())}, {bias})"


@operator("linear")
def linear(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    y = f"nn.dense({args[0]}, {args[1]}, units={w.shapes[1][0]})"
    return y if len(args) < 3 else f"nn.bias_add({w.bind(y, ())}, {args[2]}, axis=-1)"


@operator("batch_norm")
def batch_norm(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    y = w.bind(f"nn.batch_norm({', '.join(args[:5])}{attributes(epsilon=_unless(args[7], 1e-5))})", ())
    return f"{y}.0"


@operator("hardtanh")
def hardtanh(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"clip({args[0]}{attributes(a_min=float(args[1]), a_max=float(args[2]))})"


def _hard_sigmoid(w: Writer, x: str) -> str:
    clipped = w.bind(f"clip({w.bind(f'add({x}, 3f /* ty=float32 */)', ())}, a_min=0f, a_max=6f)", ())
    return f"divide({clipped}, 6f /* ty=float32 */)"


@operator("hardsigmoid")
def hard_sigmoid(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return _hard_sigmoid(w, args[0])


@operator("hardswish")
def hard_swish(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"multiply({args[0]}, {w.bind(_hard_sigmoid(w, args[0]), ())})"


@operator("relu")
def relu(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"nn.relu({args[0]})"


@operator("add")
def add(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"add({args[0]}, {args[1]})"


@operator("mul")
def multiply(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"multiply({args[0]}, {args[1]})"


@operator("mean")
def mean(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"mean({args[0]}{attributes(axis=tuple(args[1]), keepdims=_unless(len(args) > 2 and args[2], False))})"


@operator("adaptive_avg_pool2d")
def adaptive_avg_pool2d(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"nn.adaptive_avg_pool2d({args[0]}, output_size={list(args[1])})"


def _pool(w: Writer, kind: str, args: list[Any]) -> str:
    rank = len(w.shapes[0]) - 2
    size, strides, padding = [*args[1:4], *[None, [], [0] * rank][len(args[1:4]) :]]
    strides = _unless(strides or size, (1,) * rank)
    text = attributes(pool_size=tuple(size), strides=strides, padding=tuple(padding) * 2)
    return f"nn.{kind}_pool{rank}d({args[0]}{text})"


@operator("avg_pool1d", "avg_pool2d")
def avg_pool(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return _pool(w, "avg", args)


@operator("max_pool1d", "max_pool2d")
def max_pool(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return _pool(w, "max", args)


@operator("flatten")
def flatten(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"nn.batch_flatten({args[0]})"


@operator("dropout")
def dropout(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    return f"{w.bind(f'nn.dropout({args[0]})', ())}.0"


@operator("cat")
def cat(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    fields = w.bind(f"({', '.join(args[0])})", ())
    return f"concatenate({fields}, axis={args[1]})"


@operator("pad")
def pad(w: Writer, args: list[Any], kwargs: dict[str, Any]) -> str:
    pairs = list(zip(args[1][::2], args[1][1::2], strict=True))[::-1]
    widths = [[0, 0]] * (len(w.shapes[0]) - len(pairs)) + [list(p) for p in pairs]
    return f"nn.pad({args[0]}, 0f /* ty=float32 */, pad_width={widths})"
