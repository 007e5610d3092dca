"""Every refusal of Relay text says line and column, what was found, what is allowed, and what to do."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from tests.frontend.relay_writer import metadata_section
from tvm_tinytrain.errors import DTypeError, ImportModelError, ShapeError, TinyTrainError
from tvm_tinytrain.frontend.relay_text import from_relay_text

HEAD = '#[version = "0.0.5"]\ndef @main(%x: Tensor[(1, 3, 8, 8), float32], %w: Tensor[(4, 3, 3, 3), float32]) {\n  '
W = {"w": np.zeros((4, 3, 3, 3), np.float32)}


def error_of(body: str, params: dict[str, np.ndarray] = W, tail: str = "\n}") -> TinyTrainError:
    with pytest.raises(TinyTrainError) as info:
        from_relay_text(HEAD + body + tail, params)
    return info.value


BODIES = {  # body → (thing, found, allowed); the body begins at 3:3
    "nn.conv3d(%x, %w)": ("3:3 operator", "nn.conv3d", "nn.conv2d, nn.conv1d"),
    "%0 = nn.relu(%x);\n  wibble(%0)": ("4:3 operator", "wibble", "abs, add"),
    "nn.relu(%y)": ("3:11 variable", "%y, which nothing declares", "%w, %x"),
    "nn.relu(%4)": ("3:11 variable", "%4", "a temporary bound above"),
    "nn.relu(@f)": ("3:11 function", "@f", "@main"),
    "nn.relu": ("3:3 expression", "operator nn.relu without arguments", "a value"),
    "nn.relu()": ("3:3 nn.relu", "0 operands", "at least 1"),
    "nn.relu((%x, %x))": ("3:3 nn.relu", "operand 0 is a tuple of 2", "a tensor"),
    "concatenate(%x, axis=1)": ("3:3 concatenate", "operand 0 is float32[1, 3, 8, 8]", "a tuple of tensors"),
    "%0 = nn.dropout(%x); %0.1": ("3:26 tuple index", "a result of training mode", "result 0"),
    "%0 = (%x, %x); %0.2": ("3:20 tuple index", "2", "0 to 1"),
    "%0 = split(%x, indices_or_sections=2, axis=2); %0.2": ("3:52 tuple index", "2", "0 to 1"),
    "%x.0": ("3:3 tuple index", "float32[1, 3, 8, 8]", "a tuple"),
    "add(%x, %w)": ("3:3 add", "(float32[1, 3, 8, 8], float32[4, 3, 3, 3]): relax.add, the first", "operands that fit"),
    "add(%x, 1)": ("3:3 add", "int32", "operands that fit"),
    "nn.dense(%x, %x)": ("3:3 nn.dense", "no value for %x", "a parameter or constant"),
    "nn.conv2d(%x, %w, wibble=3)": ("3:21 nn.conv2d attribute", "wibble", "channels, data_layout"),
    'nn.conv2d(%x, %w, data_layout="NHWC")': ("3:21 nn.conv2d data_layout", "'NHWC'", '"NCHW"'),
    'nn.conv2d(%x, %w, out_dtype="int32")': ("3:21 nn.conv2d out_dtype", "'int32'", '"" or "float32"'),
    'nn.conv2d(%x, %w, strides="2")': ("3:21 nn.conv2d strides", "'2'", "a list of integers"),
    "nn.leaky_relu(%x, alpha=True)": ("3:21 nn.leaky_relu alpha", "True", "a number"),
    "clip(%x, a_max=1f)": ("3:3 clip a_min", "nothing", "a number"),
    "mean(%x, axis=[4])": ("3:12 mean axis", "(4,)", "-4 to 3"),
    "squeeze(%x, axis=[1])": ("3:15 squeeze axis", "(1,)", "axes of extent 1 of (1, 3, 8, 8)"),
    "transpose(%x, axes=[0, 1, 2, 4])": ("3:17 transpose axes", "(0, 1, 2, 4)", "-4 to 3"),
    "split(%x, indices_or_sections=2, axis=1)": ("3:13 split indices_or_sections", "2", "a divisor of 3"),
    "nn.max_pool2d(%x)": ("3:3 nn.max_pool2d pool_size", "nothing", "a list of integers"),
    "reshape(%x, newshape=[7, -1])": ("3:15 reshape newshape", "(7, -1)", "a new shape for (1, 3, 8, 8)"),
    "nn.pad(%x, 0f, pad_width=[[1, 1]])": ("3:18 nn.pad pad_width", "((1, 1),)", "4 pairs of integers"),
    "nn.pad(%x, sum(%x), pad_width=[[0, 0], [0, 0], [0, 0], [0, 0]])": ("3:3 nn.pad", "operand 1 is computed", "a scalar"),
    "if (%x) { %x } else { %w }": ("3:3 expression", "if (control flow)", "calls, tuples, let"),
    "match (%x) { }": ("3:3 expression", "match (pattern matching)", "calls, tuples, let"),
    "let %y = ref(%x); %y": ("3:12 expression", "ref (references)", "calls, tuples, let"),
    "nn.relu(%x": ("4:1 arguments", "symbol '}'", "',' or ')'"),
    "%0 = nn.relu(%x)\n  %0": ("4:3 binding", "temporary '0'", "';'"),
    "nn.relu(%x) $": ("3:15 character", "'$'", "Relay's tokens"),
    'nn.relu(%x, a="b)': ("3:17 string", "no closing quote", "text between"),
    "nn.relu(%x) /* never": ("3:15 comment", "/* without */", "a closed comment"),
    "nn.relu(%x, a=%w)": ("3:17 attribute", "variable 'w'", "a number, string, list"),
    "fn (%a: float32) { %a }": ("3:3 result of @main", "a function", "a tensor"),
    "%x(%w)": ("3:3 call", "float32[1, 3, 8, 8]", "an operator or a function"),
    "%0 = fn (%a: float32) { %a }; %0(%x, %x)": ("3:33 call", "2 arguments", "1"),
    "@main(%x, %w)": ("3:3 call", "functions nested above 64", "less"),
    "nn.relu(meta[relay.Constant][0])": ("3:11 meta[relay.Constant][0]", "no #[metadata]", "its tensor"),
    "nn.relu(meta[tir.IntImm][0])": ("3:11 metadata", "meta[tir.IntImm]", "meta[relay.Constant]"),
    "nn.relu(%x, %x)": ("3:3 nn.relu", "2 operands", "1"),
    "cast(%x, dtype=\"float32\", x=1)": ("3:29 cast attribute", "x", "dtype"),
    "nn.relu(%x, #)": ("3:15 section", "#)", '#[version = "0.0.5"]'),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_bodies(body: str) -> None:
    error = error_of(body)
    thing, found, allowed = BODIES[body]
    assert isinstance(error, ImportModelError)
    assert error.stage == "relay text" and error.thing == thing
    assert str(error.found).startswith(found) or found in str(error.found)
    assert allowed in str(error.allowed)
    assert error.hint


def test_the_whole_text_of_an_error() -> None:
    assert str(error_of('nn.conv2d(%x, %w, data_layout="NHWC")')) == (
        "relay text: 3:21 nn.conv2d data_layout: found 'NHWC'; allowed \"NCHW\"; convert with "
        "relay.transform.ConvertLayout({'nn.conv2d': ['NCHW', 'OIHW']}) before printing"
    )


def test_a_weight_without_value() -> None:
    error = error_of("nn.conv2d(%x, %w)", params={})
    assert (error.thing, error.found) == ("3:3 nn.conv2d", "no value for %w")
    assert "params={'w': array, …}, or the .params file" in error.hint


@pytest.mark.parametrize(
    ("text", "kind", "thing", "found"),
    [
        ("v0.0.4\ndef @main() { 1 }", ImportModelError, "1:1 module", "name 'v0'"),
        ('#[version = "0.0.4"]\ndef @main() { 1 }', ImportModelError, "1:1 version header", "0.0.4"),
        ("", ImportModelError, "1:1 module", "end of text"),
        ("def @f() { 1f }", ImportModelError, "module", "@f"),
        ("type List[A] { Nil }", ImportModelError, "1:1 expression", "type (algebraic data types)"),
        ("def @main[A](%x: A) { %x }", ImportModelError, "1:10 function", "type parameters"),
        ("def @main(%x) { %x }", ImportModelError, "1:11 %x", "no type"),
        ("def @main(%x: (float32, float32)) { %x }", ImportModelError, "1:11 %x", "a type of tuple"),
        ("def @main(%x: List) { %x }", ImportModelError, "1:15 type", "name 'List'"),
        ("def @main(%x: Tensor[(1, ?), float32]) { %x }", ShapeError, "1:11 %x", "a dimension ?"),
        ("def @main(%x: Tensor[(1, 2f), float32]) { %x }", ImportModelError, "1:26 shape", "number '2f'"),
        ("def @main(%x: Tensor[(1), int8]) { %x }", DTypeError, "1:11 %x", "int8"),
        ("def @main() { 1f } def", ImportModelError, "1:23 definition", "end of text"),
        ("def @main() { 1f } 2", ImportModelError, "1:20 module", "number '2'"),
    ],
)  # fmt: skip
def test_modules(text: str, kind: type[TinyTrainError], thing: str, found: str) -> None:
    with pytest.raises(kind) as info:
        from_relay_text(text)
    assert (info.value.thing, info.value.found) == (thing, found) or found in str(info.value.found)
    assert info.value.thing == thing


def test_a_value_of_another_shape() -> None:
    error = error_of("nn.conv2d(%x, %w)", {"w": np.zeros((4, 3, 1, 1), np.float32)})
    assert isinstance(error, ShapeError)
    assert (error.thing, error.found) == ("2:46 %w", "a value of shape (4, 3, 1, 1)")


# --- the metadata section

USE = "nn.conv2d(%x, meta[relay.Constant][0])"


def with_metadata(section: str) -> TinyTrainError:
    return error_of(USE, tail="\n}\n#[metadata]\n" + section)


def good_section(dtype: str = "float32") -> dict[str, object]:
    import tvm

    return json.loads(metadata_section([tvm.runtime.tensor(np.zeros((4, 3, 3, 3), dtype))]))


def test_broken_json_says_line_and_column_of_the_text() -> None:
    error = with_metadata('{"root": 1,\n "nodes": [}')
    assert error.thing == "7:12 metadata section" and error.allowed == "JSON as TVM saved it"


@pytest.mark.parametrize("field", ["root", "nodes", "b64ndarrays"])
def test_a_section_without_a_field(field: str) -> None:
    section = good_section()
    del section[field]
    error = with_metadata(json.dumps(section))
    assert error.thing == "5:1 metadata section" and field in str(error.found)


def test_a_constant_that_is_not_there() -> None:
    section = good_section()
    section["nodes"][2]["data"] = []  # type: ignore[index]
    error = with_metadata(json.dumps(section))
    assert (error.thing, error.found) == ("3:17 meta[relay.Constant][0]", "0 constants in #[metadata]")


def test_a_damaged_constant() -> None:
    section = good_section()
    blob = base64.b64decode(section["b64ndarrays"][0])  # type: ignore[index]
    section["b64ndarrays"] = [base64.b64encode(blob[:-4]).decode()]
    error = with_metadata(json.dumps(section))
    assert error.thing.startswith("metadata section at byte") and error.found == "428 bytes"


def test_a_constant_of_integers() -> None:
    error = with_metadata(json.dumps(good_section("int32")))
    assert isinstance(error, DTypeError)
    assert error.thing == "3:17 meta[relay.Constant][0]"
