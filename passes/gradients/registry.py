"""How a gradient rule is written and found.

A rule is registered under the name of a Relax operator (``relax.nn.relu``) or of one of our kernels (``kernel.conv2d``). It gets the
forward call with its operands already replaced by the new function's variables, the forward result and its adjoint, and returns one
adjoint (or None) per operand of the call. It asks ``ctx.needs[i]`` before it spends anything on operand i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import tvm
from tvm import relax

from tvm_tinytrain.passes.rewriting import Rebuilder

Adjoint: TypeAlias = relax.Expr | None
Rule = Callable[["GradientContext"], list[Adjoint]]

_RULES: dict[str, Rule] = {}


@dataclass
class GradientContext:
    """One forward call on the way back.

    ``args`` are the call's tensor operands, ``out`` its result, ``dy`` the adjoint of the result (a list with one entry per field,
    None where nothing reads the field, if the result is a tuple). ``needs[i]`` says whether operand i's adjoint is wanted.
    """

    r: Rebuilder
    call: relax.Call
    args: list[relax.Expr]
    out: relax.Expr
    dy: Any
    needs: list[bool]
    kernel: tvm.tirx.PrimFunc | None = None

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Binds an expression of the backward pass."""
        return self.r.emit(expr)

    @property
    def attrs(self) -> Any:
        """The forward call's attributes."""
        return self.call.attrs


def gradient(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the operators ``names``."""

    def register(rule: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"two gradients for {name}")
            _RULES[name] = rule
        return rule

    return register


def gradient_of(name: str) -> Rule | None:
    """The rule for an operator, or None."""
    return _RULES.get(name)


def known_operators() -> list[str]:
    """Names of all operators that have a gradient."""
    return sorted(_RULES)
