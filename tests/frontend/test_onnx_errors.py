"""What cannot be imported from ONNX, and what the error says; symbolic shapes that can."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.frontend.running import run
from tvm_tinytrain.errors import DTypeError, ImportModelError, ShapeError, UnsupportedOperatorError
from tvm_tinytrain.frontend.onnx import from_onnx
from tvm_tinytrain.passes.rewriting import shape_of


def model(
    *nodes: onnx.NodeProto,
    shape: Any = (1, 3, 8, 8),
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    **tensors: np.ndarray,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], dtype, None)],
        [numpy_helper.from_array(a, n) for n, a in tensors.items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def node(operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, ["y"], name="n0", **attributes)


RELU = node("Relu", "x")


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (node("If", "x"), "If (n0): control flow"),
        (node("QuantizeLinear", "x", "s"), "QuantizeLinear (n0): quantised"),
        (node("FusedConv", "x", domain="com.microsoft"), "FusedConv (n0): domain com.microsoft"),
        (node("BatchNormalization", "x", "s", "s", "s", "s", training_mode=1), "BatchNormalization (n0): training mode"),
        (node("SoftmaxCrossEntropyLoss", "x", "s"), "SoftmaxCrossEntropyLoss (n0): unknown to TVM's ONNX front end"),
    ],
)  # fmt: skip
def test_operators(bad: onnx.NodeProto, found: str) -> None:
    with pytest.raises(UnsupportedOperatorError) as info:
        from_onnx(model(RELU, bad, s=np.ones(3, np.float32)))
    assert (info.value.thing, info.value.found) == ("1 of 2 nodes", found)
    assert info.value.hint == "export the float network in inference mode (model.eval())"


def test_dropout_in_training_mode() -> None:
    bad = node("Dropout", "x", "ratio", "training")
    tensors = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    with pytest.raises(UnsupportedOperatorError, match=r"onnx: Dropout \(n0\): found training_mode is true"):
        from_onnx(model(bad, **tensors))


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"mode": "linear", "antialias": 1}, "antialias"),
        ({"mode": "cubic"}, r"scales \[1\.0, 1\.0, 0\.6.*\] of \[1, 3, 8, 8\] with mode cubic"),
        (
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
            ".* with mode linear and align_corners",
        ),
    ],
)
def test_resizing_that_would_be_another(attributes: dict[str, Any], found: str) -> None:
    bad = model(
        node("Resize", "x", "", "s", **attributes), opset=18, s=np.array([1, 1, 0.7, 0.7], np.float32)
    )
    with pytest.raises(UnsupportedOperatorError, match=rf"onnx: Resize \(n0\): found {found}"):
        from_onnx(bad)


def test_what_tvm_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    bad = model(node("Conv", "x", "w"), shape=(1, 3, 2, 2, 2, 2), w=np.ones((4, 3, 1, 1, 1, 1), np.float32))
    with pytest.raises(
        UnsupportedOperatorError, match=r"onnx: Conv \(n0\): found Ndim > 5 .*; allowed what TVM's"
    ):
        from_onnx(bad)
    assert capsys.readouterr().out == ""  # TVM prints before it raises


def test_old_opsets() -> None:
    with pytest.raises(ImportModelError) as info:
        from_onnx(model(RELU, opset=11))
    assert (info.value.thing, info.value.found, info.value.allowed) == ("opset", 11, "13 and above")
    assert "convert_version(model, 13)" in info.value.hint


def test_names_that_nothing_defines() -> None:
    with pytest.raises(
        ImportModelError, match=r"onnx: Relu \(n0\): found input 'nothing'; allowed outputs of nodes above"
    ):
        from_onnx(model(node("Relu", "nothing")))


def test_a_file_that_is_an_empty_model_to_protobuf() -> None:
    with pytest.raises(ImportModelError, match="onnx: model: found no graph; allowed a valid ONNX model"):
        from_onnx(onnx.ModelProto())


def test_an_initialiser_of_two_values() -> None:
    bad = model(node("MatMul", "x", "w"), shape=(1, 2), w=np.ones((2, 2), np.float32))
    bad.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 2), np.float32), "w"))
    with pytest.raises(ImportModelError, match="onnx: initialiser w: found two values; allowed one"):
        from_onnx(bad)


def test_two_results() -> None:
    bad = model(RELU, helper.make_node("Neg", ["y"], ["z"]))
    bad.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    with pytest.raises(ImportModelError, match="the network's result: found 2 results; allowed one tensor"):
        from_onnx(bad)


def test_models_that_break_onnx_rules() -> None:
    with pytest.raises(ImportModelError, match=r"onnx: model: found .*wibble.*; allowed a valid ONNX model"):
        from_onnx(model(node("Relu", "x", wibble=3)))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"onnx: shape inference: found .*; allowed shapes that fit"):
        from_onnx(model(node("MatMul", "x", "w"), shape=(1, 4), w=np.ones((5, 2), np.float32)))


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), (1, 3, "h", 8), (1, 3, None, 8), None])
def test_symbols_behind_the_batch(shape: Any) -> None:
    with pytest.raises(ShapeError) as info:
        from_onnx(model(RELU, shape=shape))
    assert info.value.thing == "input x"
    assert "first dimension only, which becomes a batch of 1" in str(info.value.allowed)
    assert "input_shapes={'x': (1, …)}" in info.value.hint


@pytest.mark.parametrize("shape", [("n", 3, 8, 8), (None, 3, 8, 8), (0, 3, 8, 8)])
def test_a_symbolic_batch_is_one(shape: Any) -> None:
    mod = from_onnx(model(RELU, shape=shape))
    assert shape_of(mod["main"].params[0]) == (1, 3, 8, 8)


def test_given_shapes() -> None:
    mod = from_onnx(model(RELU, shape=("n", 3, "h", "w")), input_shapes={"x": (1, 3, 4, 6)})
    assert shape_of(mod["main"].params[0]) == (1, 3, 4, 6)


def test_halves() -> None:
    with pytest.raises(DTypeError, match="input x: found float16; allowed float32"):
        from_onnx(model(RELU, dtype=TensorProto.FLOAT16))


def test_names_become_c_identifiers_and_stay_unique() -> None:
    tensors = {"onnx::Conv_3": (2, 3, 1, 1), "a.b": (2,), "a_b": (2, 1, 1), "7": (2,)}
    arrays = {n: np.full(s, i + 1, np.float32) for i, (n, s) in enumerate(tensors.items())}
    nodes = [
        helper.make_node("Conv", ["x", "onnx::Conv_3", "a.b"], ["c"]),
        helper.make_node("Add", ["c", "a_b"], ["d"]),
        helper.make_node("PRelu", ["d", "7"], ["y"]),
    ]
    mod = from_onnx(model(nodes[0], nodes[1], shape=(1, 3, 2, 2), **arrays))
    assert [p.name for p in mod["main"].params] == ["x", "Conv_3", "a_b", "a_b_1"]
    np.testing.assert_allclose(run(mod, np.ones((1, 3, 2, 2), np.float32)), np.full((1, 2, 2, 2), 8.0))


def test_the_model_stays_as_it_was() -> None:
    before = model(RELU, shape=("n", 3, 8, 8))
    copy = before.SerializeToString()
    from_onnx(before)
    assert before.SerializeToString() == copy
