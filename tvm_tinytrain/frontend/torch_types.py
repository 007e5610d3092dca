"""PyTorch's promotion of types as casts in the graph: ``torch.arange(5) * 0.5`` are floats.

TVM (0.27) takes a number that meets a tensor of integers for an integer, divides integers as integers, and has no cosine of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

_CAST = torch.ops.aten._to_copy.default
_MASKED = ("where", "masked_fill")
"""Operators that choose by truth values, which stay what they are."""
_JOINED = ("cat", "stack")
"""Operators of one type for all operands, besides the elementwise ones."""


def with_casts(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program in PyTorch's core operators, whose elementwise ones have operands of the type in which they compute."""
    program = program.run_decompositions()
    for node in list(program.graph.nodes):
        computed = _computed_in(node)
        if computed is None:
            continue
        chooses = _name(node) in _MASKED
        casts: dict[fx.Node, fx.Node] = {}
        for operand, value in _tensors(node):
            is_truth = value.dtype == torch.bool and not chooses
            is_whole = computed.is_floating_point and not value.dtype.is_floating_point
            if not is_truth and (value.dtype == torch.bool or not is_whole):
                continue
            with program.graph.inserting_before(node):
                casts[operand] = program.graph.call_function(_CAST, (operand,), {"dtype": computed})
            casts[operand].meta = {"val": value.to(computed)}
        for operand, cast in casts.items():
            node.replace_input_with(operand, cast)
    return program


def _computed_in(node: fx.Node) -> torch.dtype | None:
    """The type of numbers in which an elementwise operator computes; None for truth values and other operators."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target == _CAST:
        return None
    if torch.Tag.pointwise not in target.tags and _name(node) not in _JOINED:
        return None
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor):
        return None
    computed = result.dtype
    if computed == torch.bool and len(node.args) == 2:  # a comparison
        sides: list[Any] = [a.meta.get("val") if isinstance(a, fx.Node) else a for a in node.args]
        numbers = all(isinstance(s, (torch.Tensor, bool, int, float)) for s in sides)
        computed = torch.result_type(*sides) if numbers else computed
    return None if computed == torch.bool else computed


def _name(node: fx.Node) -> str:
    """Of the operator without its overload."""
    return str(getattr(node.target, "_opname", ""))


def _tensors(node: fx.Node) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    """The operands that are tensors, with what stands for their values."""
    for operand in node.all_input_nodes:
        value = operand.meta.get("val")
        if isinstance(value, torch.Tensor):
            yield operand, value
