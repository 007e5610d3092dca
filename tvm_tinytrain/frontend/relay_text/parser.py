"""Tokens to a syntax tree, by recursive descent; bindings in a row cost no stack.

The grammar is that of Apache TVM 0.7 to 0.19, ``src/relay/parser/parser.cc``. Algebraic data types, references, ``match``
and ``if`` are not networks that a microcontroller trains: they are errors here, at their line and column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tvm_tinytrain.errors import ImportModelError
from tvm_tinytrain.frontend.relay_text.lexer import Kind, Token, tokenize
from tvm_tinytrain.frontend.relay_text.syntax import (
    Attribute,
    AttributeValue,
    Binding,
    Block,
    Call,
    Expr,
    Function,
    Global,
    Item,
    Local,
    Meta,
    Module,
    Number,
    Operator,
    OtherType,
    Parameter,
    Temporary,
    TensorType,
    TupleExpr,
    Type,
    syntax_error,
)

T = TypeVar("T")

VERSION = "0.0.5"
MAX_DEPTH = 100  # of nested parentheses and calls
_INFIX = {  # operator → (Relay operator, precedence); all are left-associative
    "*": ("multiply", 12), "/": ("divide", 12), "+": ("add", 10), "-": ("subtract", 10), "<": ("less", 8),
    "<=": ("less_equal", 8), ">": ("greater", 8), ">=": ("greater_equal", 8), "==": ("equal", 7),
    "!=": ("not_equal", 7),
}  # fmt: skip
_REFUSED = {
    "if": "control flow", "match": "pattern matching", "ref": "references", "ref_read": "references",
    "ref_write": "references", "free_var": "free variables", "type": "algebraic data types",
    "extern": "external types",
}  # fmt: skip


def parse(text: str) -> Module:
    """The functions of a Relay module's text, or of one printed function, which is then ``main``."""
    return _Parser(tokenize(text)).module()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.index = 0
        self.depth = 0
        self.declared: set[str] = set()

    # --- tokens

    @property
    def token(self) -> Token:
        return self.tokens[self.index]

    def ahead(self, count: int = 1) -> Token:
        return self.tokens[min(self.index + count, len(self.tokens) - 1)]

    def take(self) -> Token:
        token = self.token
        self.index = min(self.index + 1, len(self.tokens) - 1)
        return token

    def at_symbol(self, text: str) -> bool:
        return self.token.kind is Kind.SYMBOL and self.token.text == text

    def accept(self, text: str) -> bool:
        if self.at_symbol(text):
            self.take()
            return True
        return False

    def expect(self, text: str, where: str) -> Token:
        if not self.at_symbol(text):
            raise self.unexpected(where, repr(text))
        return self.take()

    def expect_kind(self, kind: Kind, where: str) -> Token:
        if self.token.kind is not kind:
            raise self.unexpected(where, f"a {kind.value}")
        return self.take()

    def unexpected(self, where: str, allowed: str) -> ImportModelError:
        hint = "give the text as TVM printed it with mod.astext()"
        return syntax_error(self.token.at, where, self.token, allowed, hint)

    def refuse(self, token: Token) -> ImportModelError:
        what = f"{token.text} ({_REFUSED[token.text]})"
        hint = "import straight-line inference graphs: inline, or fold it before printing"
        return syntax_error(token.at, "expression", what, "calls, tuples, let and constants", hint)

    def sequence(self, close: str, where: str, item: Callable[[], T]) -> tuple[list[T], bool]:
        """Items up to ``close``, and whether the last one is followed by a comma."""
        items: list[T] = []
        comma = True
        while not self.at_symbol(close):
            if not comma:
                raise self.unexpected(where, f"',' or {close!r}")
            items.append(item())
            comma = self.accept(",")
        self.take()
        return items, bool(items) and comma

    # --- definitions

    def module(self) -> Module:
        if self.token.kind is Kind.VERSION:
            token = self.take()
            if token.text != VERSION:
                hint = "load it with the TVM that wrote it, and print it again with TVM 0.7 to 0.19"
                raise syntax_error(token.at, "version header", token.text, VERSION, hint)
        functions: dict[str, Function] = {}
        while self.token.kind is Kind.NAME and self.token.text in ("def", *_REFUSED):
            if self.token.text != "def":
                raise self.refuse(self.token)
            self.take()
            name = self.expect_kind(Kind.GLOBAL, "definition").text
            functions[name] = self.function()
        if not functions and self.token.kind is Kind.NAME and self.token.text == "fn":
            self.take()
            functions["main"] = self.function()
        metadata = self.take() if self.token.kind is Kind.METADATA else None
        if self.token.kind is not Kind.END:
            raise self.unexpected("module", "def @main(…) { … }")
        if not functions:
            raise self.unexpected("module", "def @main(…) { … }")
        line = metadata.at.line if metadata else 0
        return Module(functions, metadata.text if metadata else None, line)

    def function(self) -> Function:
        """Behind ``def @name`` or ``fn``."""
        at = self.token.at
        if self.at_symbol("["):
            hint = "instantiate the type parameters before printing"
            raise syntax_error(at, "function", "type parameters", "tensors of known types", hint)
        self.expect("(", "function")
        params: list[Parameter] = []

        def param() -> None:
            if self.token.kind is Kind.NAME:  # an attribute of the function: Primitive=1, executor=meta[…][0]
                self.attribute()
                return
            token = self.expect_kind(Kind.LOCAL, "parameter")
            if self.accept("{"):  # %x {virtual_device=meta[VirtualDevice][0]}: …
                self.sequence("}", "variable", self.attribute)
            params.append(Parameter(token.text, self.type() if self.accept(":") else None, token.at))
            self.declared.add(token.text)

        self.sequence(")", "parameters", param)
        if self.accept("->"):
            self.type()
        self.expect("{", "function")
        body = self.block()
        self.expect("}", "function")
        return Function(tuple(params), body, at)

    def type(self) -> Type:
        token = self.take()
        if token.kind is Kind.SYMBOL and token.text == "(":
            self.sequence(")", "type", self.type)
            return OtherType("tuple")
        if token.kind is Kind.NAME and token.text == "fn":
            self.expect("(", "type")
            self.sequence(")", "type", self.type)
            self.expect("->", "type")
            self.type()
            return OtherType("function")
        if token.kind is Kind.NAME and token.text == "Tensor":
            self.expect("[", "type")
            self.expect("(", "type")
            shape, _ = self.sequence(")", "shape", self.dimension)
            self.expect(",", "type")
            dtype = self.expect_kind(Kind.NAME, "type").text
            self.expect("]", "type")
            return TensorType(tuple(shape), dtype)
        if token.kind is Kind.NAME and token.text == "_":
            return OtherType("_")
        if token.kind is Kind.NAME and token.text.startswith(("float", "int", "uint", "bool", "bfloat")):
            return TensorType((), token.text)
        hint = "give the text as TVM printed it with mod.astext()"
        raise syntax_error(
            token.at, "type", token, "Tensor[(…), dtype], a dtype, a tuple or fn (…) -> …", hint
        )

    def dimension(self) -> int | None:
        if self.accept("?") or self.token.kind is Kind.META:
            if self.token.kind is Kind.META:
                self.take()
            return None
        token = self.expect_kind(Kind.NUMBER, "shape")
        number = _number(token)
        if not isinstance(number.value, int):
            raise syntax_error(token.at, "shape", token, "integers", "export with fixed shapes")
        return number.value

    # --- expressions

    def block(self) -> Block:
        """Bindings up to an expression; what stands before a ``;`` unbound has no effect and is dropped."""
        at = self.token.at
        bindings: list[Binding] = []
        while True:
            token = self.token
            target: Local | Temporary | None = None
            if token.kind is Kind.TEMPORARY and self.ahead().text == "=" and self.ahead().kind is Kind.SYMBOL:
                target = Temporary(int(self.take().text), token.at)
            elif token.kind is Kind.NAME and token.text == "let":
                self.take()
                name = self.expect_kind(Kind.LOCAL, "let")
                target = Local(name.text, name.at)
                if self.accept(":"):
                    self.type()
            if target is None:
                result = self.expression()
                if not self.accept(";"):
                    return Block(tuple(bindings), result, at)
                continue
            self.expect("=", "binding")
            value = self.expression()
            self.expect(";", "binding")
            if isinstance(target, Local):
                self.declared.add(target.name)
            bindings.append(Binding(target, value))

    def expression(self, lowest: int = 0) -> Expr:
        """A call or an infix expression of operators whose precedence is above ``lowest``."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            hint = "bind inner expressions to %0, %1, …, as TVM's printer does"
            raise syntax_error(self.token.at, "expression", f"nesting above {MAX_DEPTH}", "less", hint)
        left = self.call()
        while self.token.kind is Kind.SYMBOL and self.token.text in _INFIX:
            name, precedence = _INFIX[self.token.text]
            if precedence <= lowest:
                break
            at = self.take().at
            right = self.expression(precedence)
            left = Call(Operator(name, at), (left, right), (), at)
        self.depth -= 1
        return left

    def call(self) -> Expr:
        expr = self.atom()
        while True:
            if self.token.kind is Kind.INDEX:
                expr = Item(expr, int(self.token.text), self.take().at)
            elif self.at_symbol("("):
                self.take()
                args: list[Expr] = []
                attributes: list[Attribute] = []

                def argument(args: list[Expr] = args, attributes: list[Attribute] = attributes) -> None:
                    named = self.token.kind is Kind.NAME and self.ahead().text == "="
                    if named and self.ahead().kind is Kind.SYMBOL:
                        attributes.append(self.attribute())
                    else:
                        args.append(self.expression())

                self.sequence(")", "arguments", argument)
                expr = Call(expr, tuple(args), tuple(attributes), expr.at)
            else:
                return expr

    def atom(self) -> Expr:
        token = self.take()
        match token.kind:
            case Kind.NUMBER:
                return _number(token)
            case Kind.TEMPORARY:
                return Temporary(int(token.text), token.at)
            case Kind.LOCAL:
                return self.local(token)
            case Kind.GLOBAL:
                return Global(token.text, token.at)
            case Kind.META:
                return _meta(token)
            case Kind.NAME if token.text in ("True", "False"):
                return Number(token.text == "True", "bool", token.at)
            case Kind.NAME if token.text == "fn":
                return self.function()
            case Kind.NAME if token.text in _REFUSED:
                raise self.refuse(token)
            case Kind.NAME:
                return Operator(token.text, token.at)
            case Kind.SYMBOL if token.text == "(":
                fields, comma = self.sequence(")", "tuple", self.block)
                inner = tuple(f.result if not f.bindings else f for f in fields)
                return inner[0] if len(inner) == 1 and not comma else TupleExpr(inner, token.at)
            case Kind.SYMBOL if token.text == "{":
                block = self.block()
                self.expect("}", "block")
                return block
        hint = "give the text as TVM printed it with mod.astext()"
        raise syntax_error(token.at, "expression", token, "a call, variable, constant or tuple", hint)

    def local(self, token: Token) -> Expr:
        """The longest declared name that ``token`` begins with; what follows are tuple indices: ``%bn.0``."""
        parts = token.text.split(".")
        for count in range(len(parts), 0, -1):
            name, rest = ".".join(parts[:count]), parts[count:]
            if name in self.declared and all(part.isdigit() for part in rest):
                expr: Expr = Local(name, token.at)
                for part in rest:
                    expr = Item(expr, int(part), token.at)
                return expr
        names = ", ".join(f"%{name}" for name in sorted(self.declared)[:8]) or "none"
        raise syntax_error(
            token.at, "variable", f"%{token.text}, which nothing declares", names, "check the name"
        )

    # --- attributes

    def attribute(self) -> Attribute:
        token = self.expect_kind(Kind.NAME, "attribute")
        self.expect("=", "attribute")
        return Attribute(token.text, self.attribute_value(), token.at)

    def attribute_value(self) -> AttributeValue:
        token = self.take()
        if token.kind is Kind.NUMBER:
            return _number(token).value
        if token.kind is Kind.STRING:
            return token.text
        if token.kind is Kind.META:
            return _meta(token)
        if token.kind is Kind.NAME and token.text in ("True", "False", "None", "nullptr"):
            return {"True": True, "False": False}.get(token.text)
        if token.kind is Kind.SYMBOL and token.text in ("[", "("):
            values, _ = self.sequence("]" if token.text == "[" else ")", "attribute", self.attribute_value)
            return tuple(values)
        hint = "print the module with mod.astext(show_meta_data=True)"
        raise syntax_error(token.at, "attribute", token, "a number, string, list, None or bool", hint)


def _number(token: Token) -> Number:
    digits = token.text.lstrip("-")
    sign = -1 if (len(token.text) - len(digits)) % 2 else 1
    body = digits.rstrip("0123456789") if digits[-1].isdigit() else digits
    suffix, width = ("", "")
    if body and body[-1] in "fi" and not digits.endswith("inf"):
        suffix, width = body[-1], digits[len(body) :]
        digits = body[:-1]
    try:
        if suffix == "f" or (suffix == "" and not digits.isdigit()):
            return Number(sign * float(digits), f"float{width or 32}", token.at)
        value = sign * int(digits)
        default = "32" if -(2**31) <= value < 2**31 else "64"
        return Number(value, f"int{width or default}", token.at)
    except ValueError:
        raise syntax_error(token.at, "number", token.text, "1, 1i64, 1.5f", "check the number") from None


def _meta(token: Token) -> Meta:
    kind, index = token.text.split("][")
    return Meta(kind.strip(), int(index), token.at)
