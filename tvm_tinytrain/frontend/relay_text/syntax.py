"""The syntax tree of Relay text, and where in the text each node stands."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_tinytrain.errors import ImportModelError


@dataclass(frozen=True)
class Position:
    """Line and column, both from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


def syntax_error(at: Position, thing: str, found: object, allowed: object, hint: str) -> ImportModelError:
    """The error of every stage of this importer: its thing begins with line and column."""
    return ImportModelError("relay text", f"{at} {thing}".rstrip(), found, allowed, hint)


@dataclass(frozen=True)
class TensorType:
    """``Tensor[(1, 3), float32]``, or a scalar's ``float32``; None is a dimension printed as ``?``."""

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class OtherType:
    """A type that is not a tensor's: of tuples and functions, or ``_``."""

    text: str


Type = TensorType | OtherType


@dataclass(frozen=True)
class Number:
    """A scalar constant: ``2f``, ``-1``, ``3i64``, ``True``."""

    value: float | int | bool
    dtype: str
    at: Position


@dataclass(frozen=True)
class Local:
    """``%name``, a parameter or a let-bound variable."""

    name: str
    at: Position


@dataclass(frozen=True)
class Temporary:
    """``%12``, a node of the printed graph."""

    index: int
    at: Position


@dataclass(frozen=True)
class Global:
    """``@name``, a function of the module."""

    name: str
    at: Position


@dataclass(frozen=True)
class Operator:
    """``nn.conv2d``."""

    name: str
    at: Position


@dataclass(frozen=True)
class Meta:
    """``meta[relay.Constant][0]``, an object of the metadata section."""

    kind: str
    index: int
    at: Position


@dataclass(frozen=True)
class TupleExpr:
    """``(a, b)``, ``(a,)`` or ``()``."""

    fields: tuple[Expr, ...]
    at: Position


@dataclass(frozen=True)
class Item:
    """``source.index`` of a tuple."""

    source: Expr
    index: int
    at: Position


AttributeValue = (
    bool | int | float | str | None | Meta | TupleExpr | tuple["AttributeValue", ...]  # a list is a tuple
)


@dataclass(frozen=True)
class Attribute:
    """``name=value`` among the arguments of a call."""

    name: str
    value: AttributeValue
    at: Position


@dataclass(frozen=True)
class Call:
    """``callee(args, attributes)``; the callee is an operator, a global function or an expression."""

    callee: Expr
    args: tuple[Expr, ...]
    attributes: tuple[Attribute, ...]
    at: Position


@dataclass(frozen=True)
class Binding:
    """``%0 = value;`` or ``let %x = value;``."""

    target: Local | Temporary
    value: Expr


@dataclass(frozen=True)
class Block:
    """Bindings and the expression after them."""

    bindings: tuple[Binding, ...]
    result: Expr
    at: Position


@dataclass(frozen=True)
class Parameter:
    """``%x: Tensor[(1, 3), float32]``; the type is None where none is written."""

    name: str
    type: Type | None
    at: Position


@dataclass(frozen=True)
class Function:
    """``def @main(…) { … }`` or ``fn (…) { … }``."""

    params: tuple[Parameter, ...]
    body: Block
    at: Position


@dataclass(frozen=True)
class Module:
    """All functions of a text, and its metadata section's JSON with the line on which that begins."""

    functions: dict[str, Function]
    metadata: str | None
    metadata_line: int


Expr = (
    Number | Local | Temporary | Global | Operator | Meta | TupleExpr | Item | Call | Block | Function
)  # fmt: skip
