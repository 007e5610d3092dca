"""Lexer and parser of Relay text: positions, the forms that TVM's printer writes, and random expressions there and back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_tinytrain.errors import ImportModelError
from tvm_tinytrain.frontend.relay_text.lexer import Kind, tokenize
from tvm_tinytrain.frontend.relay_text.parser import parse
from tvm_tinytrain.frontend.relay_text.syntax import (
    Block,
    Call,
    Expr,
    Item,
    Local,
    Meta,
    Number,
    Operator,
    Position,
    Temporary,
    TensorType,
    TupleExpr,
)

AT = Position(1, 1)


def kinds(text: str) -> list[tuple[str, str]]:
    return [(t.kind.name, t.text) for t in tokenize(text)[:-1]]


def body(text: str) -> Block:
    return parse(f"def @main(%x: float32, %y: float32) {{ {text} }}").functions["main"].body


def test_tokens_have_line_and_column() -> None:
    tokens = tokenize("let /* one /* two\n */ */ %x = // rest\n\tnn.relu(%0.1);")
    assert [(t.text, str(t.at)) for t in tokens] == [
        ("let", "1:1"), ("x", "2:8"), ("=", "2:11"), ("nn.relu", "3:2"), ("(", "3:9"), ("0", "3:10"), ("1", "3:12"),
        (")", "3:14"), (";", "3:15"), ("", "3:16"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%aten::_convolution_0.weight", [("LOCAL", "aten::_convolution_0.weight")]),
        ("%conv1/kernel:0", [("LOCAL", "conv1/kernel:0")]),
        ("%x:float32", [("LOCAL", "x"), ("SYMBOL", ":"), ("NAME", "float32")]),
        ("%12.0", [("TEMPORARY", "12"), ("INDEX", "0")]),
        ("meta[relay.Constant][3]", [("META", "relay.Constant][3")]),
        ("-1.5e-05f", [("NUMBER", "-1.5e-05f")]),
        ("-inff", [("NUMBER", "-inff")]),
        ("(1)->_", [("SYMBOL", "("), ("NUMBER", "1"), ("SYMBOL", ")"), ("SYMBOL", "->"), ("NAME", "_")]),
        ("%x/%y", [("LOCAL", "x"), ("SYMBOL", "/"), ("LOCAL", "y")]),
        (r'"a\"b"', [("STRING", 'a"b')]),
        ('#[version = "0.0.5"]', [("VERSION", "0.0.5")]),
    ],
)
def test_tokens(text: str, expected: list[tuple[str, str]]) -> None:
    assert kinds(text) == expected


def test_metadata_is_one_token_up_to_the_end() -> None:
    token = tokenize('%x\n#[metadata]\n{"root": 1, /* no comment */}')[1]
    assert (
        token.kind is Kind.METADATA
        and token.text == '\n{"root": 1, /* no comment */}'
        and token.at == Position(2, 1)
    )


@pytest.mark.parametrize(
    ("text", "value", "dtype"),
    [
        ("2f", 2.0, "float32"), ("-1f", -1.0, "float32"), ("1e-05f", 1e-5, "float32"), ("2.5f16", 2.5, "float16"),
        ("3f64", 3.0, "float64"), ("7", 7, "int32"), ("7i64", 7, "int64"), ("-2i16", -2, "int16"),
        ("2147483648", 1 << 31, "int64"), ("--3", 3, "int32"), ("inff", math.inf, "float32"), ("True", True, "bool"),
        ("1.5", 1.5, "float32"),
    ],
)  # fmt: skip
def test_numbers(text: str, value: float, dtype: str) -> None:
    number = body(text).result
    assert isinstance(number, Number)
    assert (number.value, number.dtype, type(number.value)) == (value, dtype, type(value))


def test_parameters_types_and_attributes() -> None:
    main = parse(
        "def @main(%a {virtual_device=meta[VirtualDevice][0]}: Tensor[(1, ?, 3), float32] /* ty=… */, %b: (float32, _), %c,\n"
        '  executor=meta[Executor][0], hash="1f") -> fn (int32) -> Tensor[(2), bool] { %a }'
    ).functions["main"]
    assert [p.name for p in main.params] == ["a", "b", "c"]
    assert main.params[0].type == TensorType((1, None, 3), "float32")
    assert main.params[2].type is None


def test_attributes_of_calls() -> None:
    call = body(
        'f.g(%x, a=[1, -2], b=None, c=[[0, 1], []], d="NCHW", e=1e-3f, f=True, g=(4), /* h */)'
    ).result
    assert isinstance(call, Call)
    assert call.args == (Local("x", Position(1, 43)),)
    found = {a.name: a.value for a in call.attributes}
    assert found == {"a": (1, -2), "b": None, "c": ((0, 1), ()), "d": "NCHW", "e": 1e-3, "f": True, "g": (4,)}


def test_dotted_names_are_variables_or_tuple_fields() -> None:
    main = parse("def @main(%p: float32, %p.0: float32, %q.w: float32) { (%p.0, %p.1, %q.w.2) }").functions[
        "main"
    ]
    first, second, third = main.body.result.fields  # type: ignore[union-attr]
    assert isinstance(first, Local) and first.name == "p.0"
    assert isinstance(second, Item) and second.index == 1 and second.source.name == "p"  # type: ignore[union-attr]
    assert isinstance(third, Item) and third.index == 2 and third.source.name == "q.w"  # type: ignore[union-attr]


def test_bindings_in_a_row_cost_no_stack() -> None:
    lines = [f"%{i + 1} = nn.relu(%{i});" for i in range(3000)]
    block = body("%0 = %x; " + "\n".join(lines) + " %3000")
    assert len(block.bindings) == 3001


def test_a_printed_function_is_main() -> None:
    assert set(parse("fn (%x: float32) { %x }").functions) == {"main"}


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ImportModelError, match=r"relay text: 1:\d+ expression: found nesting above 100"):
        body("(" * 500 + "%x" + ")" * 500)


# --- random expressions, printed in two ways and parsed


def shown(expr: Expr, infix: bool) -> str:
    match expr:
        case Number(value, dtype, _):
            return {"bool": str(value), "int32": f"{value}", "float32": f"{value!r}f"}[dtype]
        case Local(name, _):
            return f"%{name}"
        case Temporary(index, _):
            return f"%{index}"
        case Meta(kind, index, _):
            return f"meta[{kind}][{index}]"
        case TupleExpr(fields, _):
            return f"({', '.join(shown(f, infix) for f in fields)}{',' if len(fields) == 1 else ''})"
        case Item(source, index, _):
            inner = shown(source, infix)
            return (
                f"{inner}.{index}"
                if isinstance(source, Temporary | TupleExpr | Call | Item)
                and not (infix and isinstance(source, Call))
                else f"({inner}).{index}"
            )
        case Call(Operator(name, _), args, attributes, _):
            sign = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}.get(name)
            if infix and sign and len(args) == 2:
                return f"({shown(args[0], infix)} {sign} {shown(args[1], infix)})"
            inner = [shown(a, infix) for a in args] + [f"{a.name}={list(a.value)}" for a in attributes]  # type: ignore[arg-type]
            return f"{name}({', '.join(inner)})"
    raise AssertionError(expr)


def plain(value: object) -> object:
    """A tree without positions."""
    if isinstance(value, tuple):
        return tuple(plain(v) for v in value)
    if hasattr(value, "__dataclass_fields__"):
        fields = {n: plain(getattr(value, n)) for n in value.__dataclass_fields__ if n != "at"}
        return (type(value).__name__, *fields.values())
    return value


numbers = st.one_of(
    st.builds(Number, st.integers(-(2**31), 2**31 - 1), st.just("int32"), st.just(AT)),
    st.builds(Number, st.floats(allow_nan=False, allow_infinity=False), st.just("float32"), st.just(AT)),
    st.builds(Number, st.booleans(), st.just("bool"), st.just(AT)),
)
leaves = st.one_of(
    numbers,
    st.builds(Local, st.sampled_from(["x", "y"]), st.just(AT)),
    st.builds(Temporary, st.integers(0, 99), st.just(AT)),
    st.builds(Meta, st.just("relay.Constant"), st.integers(0, 9), st.just(AT)),
)
operators = st.builds(
    Operator, st.sampled_from(["add", "subtract", "multiply", "divide", "nn.relu", "nn.conv2d"]), st.just(AT)
)


def nested(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    args = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Call, operators, args, st.just(()), st.just(AT)),
        st.builds(TupleExpr, st.lists(inner, max_size=3).map(tuple), st.just(AT)),
        st.builds(Item, inner, st.integers(0, 9), st.just(AT)),
    )


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(leaves, nested, max_leaves=12),
    st.booleans(),
    st.sampled_from([" ", "\n", " /* c */ ", "\t// c\n"]),
)
def test_random_expressions_survive(expr: Expr, infix: bool, blank: str) -> None:
    text = shown(expr, infix).replace(" ", blank)
    assert plain(body(text).result) == plain(expr)


@settings(max_examples=300, deadline=None)
@given(st.text("%@#[]{}()<>=+-*/.,;:\"'!?xy01f \nletfnmaif", max_size=60))
def test_random_text_parses_or_says_where(text: str) -> None:
    try:
        body(text)
    except ImportModelError as error:
        line, column = error.thing.split(" ")[0].split(":")
        assert 1 <= int(line) <= text.count("\n") + 1 and int(column) >= 1
