"""How a rewriting rule is written and found.

A rule is registered under a Relax operator's name. It gets the call with its operands already rewritten and returns the expression
that stands for the result from then on, or None: "not mine". Rules look backwards only, at the definitions of their operands or at
the facts that earlier rules noted about them; what a rewriting makes superfluous is removed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from tvm_tinytrain.passes.rewriting import Rebuilder, operands, shape_of

Rule = Callable[["Rewrite"], relax.Expr | None]

_RULES: dict[str, list[Rule]] = {}


@dataclass
class Rewrite:
    """One call of ``main`` under rewriting.

    ``call`` has the new operands. ``facts`` is the rules' common notebook on new variables. ``reads`` counts how often the old
    function reads each operand. ``params`` are the network's parameters by name with their initial values.
    """

    r: Rebuilder
    binding: relax.VarBinding
    call: relax.Call
    facts: dict[relax.Var, Any]
    reads: dict[relax.Var, int]
    params: Mapping[str, np.ndarray]

    @property
    def args(self) -> list[relax.Expr]:
        """The operands, tuples flattened."""
        return operands(self.call)

    @property
    def attrs(self) -> Any:
        """The call's attributes."""
        return self.call.attrs

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The result's shape."""
        return shape_of(self.binding.var)

    @property
    def is_float(self) -> bool:
        """Whether the result is a float32 tensor with axes."""
        return str(self.binding.var.ty.dtype) == "float32" and self.out_shape != ()

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """The shape of an operand."""
        return shape_of(self.args[index])

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Binds an expression under the old variable's name."""
        return self.r.emit(expr, self.binding.var.name)

    def kernel(self, func: tirx.PrimFunc, args: Sequence[relax.Expr], shapes: Any) -> relax.Var:
        """Binds a call of a kernel; see `Rebuilder.kernel`."""
        return self.r.kernel(func, args, shapes, self.binding.var.name)

    def view(self, expr: relax.Expr, shape: Sequence[int]) -> relax.Expr:
        """The expression reshaped, or itself where the shape fits already."""
        return expr if shape_of(expr) == tuple(shape) else self.r.emit(relax.op.reshape(expr, tuple(shape)))

    def definition(self, expr: relax.Expr) -> relax.Expr | None:
        """What a new variable was bound to; None for parameters and constants."""
        return self.r.bb.lookup_binding(expr) if isinstance(expr, relax.Var) else None

    def is_param(self, expr: relax.Expr) -> bool:
        """Whether an expression is a parameter of the network."""
        return isinstance(expr, relax.Var) and expr.name in self.params and self.definition(expr) is None

    def known(self, expr: relax.Expr) -> np.ndarray | None:
        """The value of an expression where it is known at compile time: a constant, or a parameter of integers or truth values."""
        if isinstance(expr, tvm.ir.GenericConst):
            return np.asarray(expr.value.numpy())
        is_table = self.is_param(expr) and not np.issubdtype(self.params[expr.name].dtype, np.floating)
        return self.params[expr.name] if is_table else None

    def scalar(self, expr: relax.Expr) -> float | None:
        """The value of a scalar known at compile time."""
        value = self.known(expr)
        return float(value.reshape(())) if value is not None and value.size == 1 else None


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the operators ``names``; rules of one operator are asked in order of registration."""

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES.setdefault(name, []).append(function)
        return function

    return register


def rules_of(name: str) -> list[Rule]:
    """The rules for an operator."""
    return _RULES.get(name, [])
