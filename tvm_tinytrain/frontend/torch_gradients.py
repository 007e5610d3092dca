"""``detach()`` and ``torch.no_grad()``: marks in an exported program where no gradient flows.

The decompositions that TVM's front end begins with turn ``detach`` into a mere alias and put regions without gradient in line, so
both are replaced before by an operator of our own that decompositions leave alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

_LIBRARY = torch.library.Library("tvm_tinytrain", "DEF")
_LIBRARY.define("stop_gradient(Tensor x) -> Tensor")
_LIBRARY.impl("stop_gradient", lambda x: x.clone(), "CompositeExplicitAutograd")
_STOP: Any = torch.ops.tvm_tinytrain.stop_gradient.default
_DETACH = (torch.ops.aten.detach.default, torch.ops.aten.detach_.default)


@contextmanager
def marked_gradient_stops(program: torch.export.ExportedProgram) -> Iterator[None]:
    """While it lasts, ``stop_gradient`` stands for each ``detach`` of the program, and behind each result of a region without
    gradient."""
    graph = program.graph
    varying = _varying(program)  # what PyTorch makes of a constant in the network is detached too
    detached = {node: node.target for node in graph.nodes if node.target in _DETACH and node in varying}
    stops: dict[fx.Node, fx.Node] = {}
    try:
        for node in detached:
            node.target = _STOP
        for node in [n for n in graph.nodes if n in varying and _without_gradient(n)]:
            with graph.inserting_after(node):
                stop = graph.call_function(_STOP, (node,))
            stop.meta = dict(node.meta)
            readers = [
                u for u in node.users if u is not stop and u.op != "output"
            ]  # outputs go by their name
            for reader in readers:
                reader.replace_input_with(node, stop)
            stops[stop] = node
        yield
    finally:
        for stop, node in stops.items():
            stop.replace_all_uses_with(node)
            graph.erase_node(stop)
        for node, target in detached.items():
            node.target = target


def _varying(program: torch.export.ExportedProgram) -> set[fx.Node]:
    """The nodes that depend on the network's inputs or parameters."""
    signature = program.graph_signature
    sources = {*signature.user_inputs, *signature.inputs_to_parameters}
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if (node.op == "placeholder" and node.name in sources) or any(
            n in found for n in node.all_input_nodes
        ):
            found.add(node)
    return found


def _without_gradient(node: fx.Node) -> bool:
    """Whether a node is a tensor that ``torch.no_grad`` computed."""
    region = node.args[0] if node.args and "getitem" in str(node.target) else None
    if not isinstance(region, fx.Node):
        return False
    return "wrap_with_set_grad_enabled" in str(region.target) and region.args[0] is False
