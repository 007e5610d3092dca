"""The table of Relay operators, and what a conversion sees of a call: operands, attributes, errors with their position."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import tvm
from tvm import relax

from tvm_tinytrain.errors import ImportModelError
from tvm_tinytrain.frontend.relay_text.syntax import Attribute, Function, Position, syntax_error


@dataclass(frozen=True)
class Closure:
    """A Relay function as a value, with the values of the variables that it sees."""

    function: Function
    scope: Any


# A tuple's field is None where Relay defines it and an inference graph has no use for it (the mask of a dropout).
Value: TypeAlias = "relax.Expr | Closure | tuple[Value, ...] | None"
Conversion = Callable[["OpCall"], Value]
_TABLE: dict[str, Conversion] = {}


def operator(*names: str) -> Callable[[Conversion], Conversion]:
    """Registers the conversion of the Relay operators ``names``; it returns Relax expressions, which the caller binds."""

    def register(conversion: Conversion) -> Conversion:
        _TABLE.update(dict.fromkeys(names, conversion))
        return conversion

    return register


def supported_operators() -> tuple[str, ...]:
    """Names of all Relay operators that can be imported."""
    return tuple(sorted(_TABLE))


def convert(call: OpCall) -> Value:
    """The Relax form of a call; an unknown operator, or an attribute or operand that its conversion did not read, is an error."""
    if call.name not in _TABLE:
        close = difflib.get_close_matches(call.name, _TABLE, n=4, cutoff=0.5)
        allowed = f"{', '.join(close)}, … ({len(_TABLE)} operators)" if close else ", ".join(sorted(_TABLE))
        hint = "rewrite the network with these before printing it"
        raise syntax_error(call.at, "operator", call.name, allowed, hint)
    value = _TABLE[call.name](call)
    if len(call.args) > call.operands_read:
        raise call.error(f"{len(call.args)} operands", call.operands_read, "check the call")
    for name, attribute in call.attributes.items():
        if name not in call.read:
            allowed = ", ".join(sorted(call.read)) or "no attributes"
            raise syntax_error(
                attribute.at, f"{call.name} attribute", name, allowed, "remove it, if it has no effect"
            )
    return value


@dataclass
class OpCall:
    """A call of operator ``name`` at ``at`` with converted operands; ``inputs`` are the network's inputs."""

    name: str
    at: Position
    args: tuple[Value, ...]
    attributes: dict[str, Attribute]
    inputs: tuple[relax.Var, ...] = ()
    read: set[str] = field(default_factory=set)
    operands_read: int = 0

    # --- operands

    def tensor(self, index: int) -> relax.Expr:
        """Operand ``index``, which must be a tensor."""
        self.operands_read = max(self.operands_read, index + 1)
        if index >= len(self.args):
            raise self.error(f"{len(self.args)} operands", f"at least {index + 1}", "check the call")
        value = self.args[index]
        if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
            raise self.error(
                f"operand {index} is {describe(value)}", "a tensor", "take a field of the tuple: %x.0"
            )
        return value

    def parameter(self, index: int) -> relax.Expr:
        """Operand ``index``, which must not be the network's own input: a weight without a value looks like that."""
        value = self.tensor(index)
        if value in self.inputs:
            hint = f"give its value: params={{'{value.name}': array, …}}, or the .params file beside the text"
            raise self.error(f"no value for %{value.name}", "a parameter or constant", hint)
        return value

    def tensors(self, index: int) -> list[relax.Expr]:
        """Operand ``index``, which must be a tuple of tensors."""
        self.operands_read = max(self.operands_read, index + 1)
        value = self.args[index] if index < len(self.args) else None
        if isinstance(value, relax.Expr) and isinstance(value.ty, tvm.ir.TupleType):
            return [relax.TupleGetItem(value, i) for i in range(len(value.ty.fields))]
        if not isinstance(value, tuple):
            raise self.error(f"operand {index} is {describe(value)}", "a tuple of tensors", "check the call")
        for item in value:
            if not isinstance(item, relax.Expr):
                raise self.error(f"a field is {describe(item)}", "a tensor", "check the call")
        return list(value)

    def shape(self, index: int) -> tuple[int, ...]:
        """Shape of operand ``index``."""
        return tuple(int(d) for d in self.tensor(index).ty.shape)

    def scalar(self, index: int) -> float:
        """Operand ``index`` as a number; it must be a scalar constant."""
        value = self.tensor(index)
        if not isinstance(value, tvm.ir.GenericConst) or value.value.numpy().size != 1:
            raise self.error(f"operand {index} is computed", "a scalar constant", "fold it before printing")
        return float(value.value.numpy().reshape(()))

    # --- attributes

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute as it was parsed; ``default`` where the text, as TVM's printer, leaves it out."""
        self.read.add(name)
        return self.attributes[name].value if name in self.attributes else default

    def ints(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...] | None:
        """A list of integers; one integer counts as a list of one."""
        value = self.attribute(name, default)
        if isinstance(value, int) and not isinstance(value, bool):
            value = (value,)
        if value is not None and not (isinstance(value, tuple) and all(type(v) is int for v in value)):
            raise self.attribute_error(name, "a list of integers")
        return value

    def spatial(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Like `ints`, for strides and dilations: one per spatial axis, and one integer stands for all."""
        value = self.ints(name, default) or default
        return value * len(default) if len(value) == 1 else value

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer; without a default it must be in the text."""
        value = self.attribute(name, default)
        if type(value) is not int:
            raise self.attribute_error(name, "an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number; without a default it must be in the text."""
        value = self.attribute(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.attribute_error(name, "a number")
        return float(value)

    def axis(self, name: str, value: int, rank: int) -> int:
        """``value`` of attribute ``name`` counted from the front; it must be one of ``rank`` axes."""
        if not -rank <= value < rank:
            raise self.attribute_error(name, f"{-rank} to {rank - 1}", "check the operand's shape")
        return value % rank

    def flag(self, name: str, default: bool = False) -> bool:
        """True or False; 0 and 1 too."""
        value = self.attribute(name, default)
        if value not in (True, False):
            raise self.attribute_error(name, "True or False")
        return bool(value)

    def text(self, name: str, default: str, allowed: tuple[str, ...] = ()) -> str:
        """A string, one of ``allowed`` where that is given."""
        value = self.attribute(name, default)
        if not isinstance(value, str) or (allowed and value not in allowed):
            raise self.attribute_error(name, " or ".join(f'"{a}"' for a in allowed) or "a string")
        return value

    def layout(self, name: str, only: str) -> None:
        """Refuses any layout but ``only``."""
        if self.text(name, only) not in (only, ""):
            hint = (
                "convert with relay.transform.ConvertLayout({'nn.conv2d': ['NCHW', 'OIHW']}) before printing"
            )
            raise self.attribute_error(name, f'"{only}"', hint)

    def ignore(self, *names: str) -> None:
        """Attributes that say again what the operands say."""
        self.read.update(names)

    # --- errors

    def error(self, found: object, allowed: object, hint: str) -> ImportModelError:
        """An error about this call."""
        return syntax_error(self.at, self.name, found, allowed, hint)

    def attribute_error(self, name: str, allowed: str, hint: str = "check the attribute") -> ImportModelError:
        """An error about an attribute, at its place; at the call's where it is missing."""
        given = self.attributes.get(name)
        found = repr(given.value) if given else "nothing"
        return syntax_error(given.at if given else self.at, f"{self.name} {name}", found, allowed, hint)


def describe(value: Value) -> str:
    """A value's kind, for error texts."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, Closure):
        return "a function"
    if isinstance(value, relax.Expr) and isinstance(value.ty, relax.TensorType):
        return f"{value.ty.dtype}{[int(d) for d in value.ty.shape]}"
    return "without value" if value is None else f"of type {value.ty}"
