"""ONNX operators against ONNX's own reference evaluator. All cases are built at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.frontend.running import Batch, run
from tvm_tinytrain.frontend.onnx import from_onnx

IMAGE = (1, 4, 9, 8)
Node = tuple[Any, ...]  # operator, inputs, attributes; its output is named after its position: t0, t1, …


class Case(NamedTuple):
    """Nodes over ``x`` of ``shape`` and initialisers: shapes (random floats) or arrays; the last node's output is the model's."""

    nodes: list[Node]
    tensors: dict[str, Any] = {}
    shape: tuple[int | str, ...] = IMAGE
    opset: int = 13


def node(operator: str, *inputs: str, **attributes: Any) -> Node:
    return operator, inputs, attributes


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


W = {"w": (6, 4, 3, 3), "b": (6,)}
NORM = {"g": (4,), "b": (4,), "m": (4,), "v": (4,)}
BN = node("BatchNormalization", "x", "g", "b", "m", "v", epsilon=1e-3)
CASES = {
    "Conv": Case([node("Conv", "x", "w", "b", pads=[1, 2, 0, 1], strides=[2, 1], kernel_shape=[3, 3])], W),
    "Conv SAME_UPPER": Case([node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2])], W),
    "Conv SAME_LOWER": Case([node("Conv", "x", "w", auto_pad="SAME_LOWER", strides=[2, 2])], W),
    "Conv VALID": Case([node("Conv", "x", "w", auto_pad="VALID")], W),
    "Conv depthwise": Case([node("Conv", "x", "w", group=4, dilations=[2, 2])], {"w": (4, 1, 3, 3)}),
    "Conv 1-D": Case([node("Conv", "x", "w", "b", pads=[2, 2])], {"w": (3, 4, 5), "b": (3,)}, (1, 4, 20)),
    "ConvTranspose": Case(
        [node("ConvTranspose", "x", "w", strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])],
        {"w": (4, 5, 3, 3)},
    ),
    "BatchNormalization": Case([BN], NORM, opset=15),  # the evaluator updates statistics below 14
    "BatchNormalization behind Conv": Case(
        [node("Conv", "x", "w", pads=[1, 1, 1, 1]), node("BatchNormalization", "t0", "g", "b", "m", "v")],
        {"w": (4, 4, 3, 3), **NORM},
        opset=15,
    ),
    "BatchNormalization as arithmetic": Case(
        [
            node("Add", "v", "epsilon"), node("Sqrt", "t0"), node("Div", "g", "t1"),
            node("Unsqueeze", "t2", "axes"), node("Mul", "x", "t3"), node("Unsqueeze", "b", "axes"),
            node("Add", "t4", "t5"),
        ],
        {"g": (4,), "b": (4,), "v": (4,), "epsilon": np.float32(1e-3), "axes": ints(1, 2)},
    ),
    "Clip": Case([node("Clip", "x", "low", "high")], {"low": np.float32(0), "high": np.float32(6)}),
    "Clip low": Case([node("Clip", "x", "low")], {"low": np.float32(0)}),
    "Clip low other": Case([node("Clip", "x", "low")], {"low": np.float32(-0.25)}),
    "Clip high": Case([node("Clip", "x", "", "high")], {"high": np.float32(0.5)}),
    "Clip infinite": Case([node("Clip", "x", "low", "high")], {"low": np.float32(0), "high": np.float32(np.inf)}),
    "Clip crossed": Case([node("Clip", "x", "low", "high")], {"low": np.float32(0.5), "high": np.float32(-0.5)}),
    "Gemm": Case([node("Gemm", "x", "w", "b", transB=1)], {"w": (7, 5), "b": (7,)}, (1, 5)),
    "Gemm scaled": Case(
        [node("Gemm", "x", "w", "b", transA=1, alpha=0.5, beta=2.0)], {"w": (3, 5), "b": (1, 5)}, (3, 1)
    ),
    "MatMul, Add": Case([node("MatMul", "x", "w"), node("Add", "t0", "b")], {"w": (5, 7), "b": (7,)}, (1, 5)),
    "MatMul of a transposed weight": Case(
        [node("Transpose", "w", perm=[1, 0]), node("MatMul", "x", "t0")], {"w": (7, 5)}, (1, 5)
    ),
    "CumSum": Case([node("CumSum", "x", "axis")], {"axis": np.int64(2)}),
    "CumSum from the end": Case(
        [node("CumSum", "x", "axis", reverse=1, exclusive=1)], {"axis": np.int64(-1)}
    ),
    "GatherElements": Case(
        [node("GatherElements", "x", "k", axis=2)], {"k": np.arange(-64, 64).reshape(1, 4, 4, 8) % 9 - 3}
    ),
    "Trilu": Case([node("Trilu", "x", "k", upper=0)], {"k": np.int64(-1)}, opset=14),
    "RMSNormalization": Case([node("RMSNormalization", "x", "g", axis=-2)], {"g": (9, 8)}, opset=23),
    "ReduceProd": Case([node("ReduceProd", "x", axes=[1, 3], keepdims=0)]),
    "Cast to integers": Case([node("Mul", "x", "s"), node("Cast", "t0", to=6), node("Cast", "t1", to=1)], {"s": np.float32(9)}),
    "Relu": Case([node("Relu", "x")]),
    "LeakyRelu": Case([node("LeakyRelu", "x", alpha=0.1)]),
    "HardSwish": Case([node("HardSwish", "x")], opset=14),
    "HardSigmoid": Case([node("HardSigmoid", "x", alpha=1 / 6, beta=0.5)]),
    "Sigmoid, Mul": Case([node("Sigmoid", "x"), node("Mul", "x", "t0")]),
    "Tanh, Erf": Case([node("Tanh", "x"), node("Erf", "t0")]),
    "Gelu": Case([node("Gelu", "x")], opset=20),
    "Softmax": Case([node("Softmax", "x", axis=1)]),
    "LogSoftmax": Case([node("LogSoftmax", "x", axis=-1)]),
    "GlobalAveragePool": Case([node("GlobalAveragePool", "x")]),
    "GlobalMaxPool": Case([node("GlobalMaxPool", "x")]),
    "MaxPool": Case([node("MaxPool", "x", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1])]),
    "MaxPool SAME_UPPER": Case([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")]),
    "MaxPool ceil": Case([node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)]),
    "AveragePool": Case([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1])]),
    "AveragePool padded": Case(
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)]
    ),
    "AveragePool padded on two sides": Case(
        [node("AveragePool", "x", kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1)]
    ),
    "AveragePool 1-D": Case([node("AveragePool", "x", kernel_shape=[4], strides=[4])], shape=(1, 4, 20)),
    "Flatten": Case([node("Flatten", "x", axis=1)]),
    "Reshape": Case([node("Reshape", "x", "to")], {"to": ints(0, -1, 8)}),
    "Reshape of a symbolic batch": Case(
        [
            node("Shape", "x"), node("Gather", "t0", "first", axis=0), node("Unsqueeze", "t1", "axes"),
            node("Concat", "t2", "rest", axis=0), node("Reshape", "x", "t3"),
        ],
        {"first": np.array(0, np.int64), "axes": ints(0), "rest": ints(-1)},
        ("batch", 4, 9, 8),
    ),
    "Flatten by Shape and ReduceProd": Case(
        [
            node("Shape", "x"), node("Slice", "t0", "one", "end"), node("ReduceProd", "t1", keepdims=1),
            node("Concat", "minus", "t2", axis=0), node("Reshape", "x", "t3"),
        ],
        {"one": ints(1), "end": ints(9), "minus": ints(-1)},
    ),
    "Squeeze, Unsqueeze": Case(
        [node("Unsqueeze", "x", "axes"), node("Squeeze", "t0", "first")], {"axes": ints(2), "first": ints(0)}
    ),
    "Transpose": Case([node("Transpose", "x", perm=[0, 2, 3, 1])]),
    "Concat": Case([node("Relu", "x"), node("Concat", "x", "t0", axis=1)]),
    "Split": Case(
        [node("Split", "x", "parts", axis=1, outputs=2), node("Concat", "t0b", "t0", axis=1)], {"parts": ints(1, 3)}
    ),
    "Slice": Case(
        [node("Slice", "x", "begin", "end", "axes", "steps")],
        {"begin": ints(1, -3), "end": ints(4, 1 << 40), "axes": ints(1, 3), "steps": ints(2, 1)},
    ),
    "Pad": Case([node("Pad", "x", "pads", "value")], {"pads": ints(0, 0, 1, 0, 0, 1, 2, 3), "value": np.float32(1.5)}),
    "Pad axes": Case([node("Pad", "x", "pads", "", "axes")], {"pads": ints(1, 2), "axes": ints(-1)}, opset=18),
    "Pad edge": Case([node("Pad", "x", "pads", mode="edge")], {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)}),
    "Pad reflect": Case([node("Pad", "x", "pads", mode="reflect")], {"pads": ints(0, 0, 1, 1, 0, 0, 2, 2)}),
    "Reductions over nothing": Case(
        [
            node("ReduceL1", "x", noop_with_empty_axes=1), node("ReduceL2", "x", "none", noop_with_empty_axes=1),
            node("ReduceSumSquare", "x", noop_with_empty_axes=1), node("Add", "t0", "t1"), node("Add", "t2", "t3"),
            node("ReduceLogSum", "t4", noop_with_empty_axes=1), node("ReduceLogSumExp", "t5", noop_with_empty_axes=1),
        ],
        {"none": ints()}, opset=18,
    ),
    "Pow of a whole number": Case([node("Pow", "x", "p")], {"p": np.array(3)}),
    "Celu": Case([node("Celu", "x", alpha=0.5)]),
    "Einsum with dots": Case([node("Einsum", "x", "w", equation="...w, wo -> ...o")], {"w": (8, 3)}),
    "Einsum without a result": Case([node("Einsum", "x", "w", equation="nchw,oc")], {"w": (3, 4)}),
    "Resize": Case(
        [node("Resize", "x", "", "scales", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"scales": np.array([1, 1, 2, 3], np.float32)},
    ),
    "Resize by sizes": Case(
        [node("Resize", "x", "", "", "sizes", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"sizes": ints(1, 4, 18, 16)},
    ),
    "Resize linear by 1.7": Case(
        [node("Resize", "x", "", "scales", mode="linear")], {"scales": np.array([1, 1, 1.7, 0.7], np.float32)}
    ),
    "Resize nearest by 1.7": Case(
        [node("Resize", "x", "", "scales", mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")],
        {"scales": np.array([1, 1, 1.7, 0.7], np.float32)},
    ),
    "Resize nearest, half pixels, by 1.3": Case(
        [node("Resize", "x", "", "scales", mode="nearest", nearest_mode="round_prefer_ceil")],
        {"scales": np.array([1, 1, 1.3, 2], np.float32)},
    ),
    "Resize channels": Case([node("Resize", "x", "", "scales", mode="linear")], {"scales": np.array([1, 2, 1, 1], np.float32)}),
    "Resize axes": Case(
        [node("Resize", "x", "", "scales", mode="nearest", axes=[2, 3])], {"scales": np.array([2, 3], np.float32)}, opset=18
    ),
    "Resize axes by sizes": Case(
        [node("Resize", "x", "", "", "sizes", mode="linear", axes=[3])], {"sizes": ints(11)}, opset=18
    ),
    "ReduceMean": Case([node("ReduceMean", "x", axes=[2, 3], keepdims=0)]),
    "ReduceMean axes as input": Case([node("ReduceMean", "x", "axes")], {"axes": ints(2, 3)}, opset=18),
    "ReduceSum, ReduceMax": Case(
        [node("ReduceSum", "x", "axes"), node("ReduceMax", "t0", axes=[3])], {"axes": ints(2)}
    ),
    "LayerNormalization": Case(
        [node("LayerNormalization", "x", "g", "b")], {"g": (8,), "b": (8,)}, opset=17
    ),
    "InstanceNormalization": Case([node("InstanceNormalization", "x", "g", "b")], {"g": (4,), "b": (4,)}),
    "Arithmetic": Case(
        [node("Sub", "x", "b"), node("Div", "t0", "two"), node("Neg", "t1"), node("Abs", "t2"), node("Sqrt", "t3")],
        {"b": (1, 4, 1, 1), "two": np.float32(2)},
    ),
    "Min, Max": Case([node("Max", "x", "low"), node("Min", "t0", "high")], {"low": np.float32(0), "high": np.float32(1)}),
    "Dropout, Identity": Case([node("Dropout", "x"), node("Identity", "t0"), node("Relu", "t1")]),
    "Constant": Case([node("Constant", value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), node("Mul", "x", "t0")]),
    "ConstantOfShape": Case(
        [
            node("Shape", "x"), node("ConstantOfShape", "t0", value=numpy_helper.from_array(np.ones(1, np.float32))),
            node("Add", "x", "t1"),
        ]
    ),
    "DepthToSpace": Case([node("DepthToSpace", "x", blocksize=2)]),
}  # fmt: skip


def arrays_of(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    arrays = {}
    for name, value in case.tensors.items():
        random = isinstance(value, tuple)
        arrays[name] = rng.standard_normal(value).astype(np.float32) if random else np.asarray(value)
    return arrays | ({"v": np.abs(arrays["v"]) + 0.5} if "v" in arrays else {})


def model_of(case: Case) -> onnx.ModelProto:
    nodes = []
    for index, (operator, inputs, attributes) in enumerate(case.nodes):
        count = attributes.get("outputs", 1)
        outputs = [f"t{index}"] + [f"t{index}{letter}" for letter in "bcd"[: count - 1]]
        options = {k: v for k, v in attributes.items() if k != "outputs"}
        nodes.append(helper.make_node(operator, inputs, outputs, name=f"n{index}", **options))
    graph = helper.make_graph(
        nodes,
        "case",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor_value_info(f"t{len(nodes) - 1}", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays_of(case).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=10)


@pytest.fixture(scope="module")
def batch() -> Batch:
    def load(case: Case) -> Callable[[], object]:
        return lambda: from_onnx(model_of(case))

    return Batch({name: load(case) for name, case in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_reference(batch: Batch, name: str) -> None:
    case = CASES[name]
    shape = [1 if isinstance(d, str) else d for d in case.shape]
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    expected = ReferenceEvaluator(model_of(case)).run(None, {"x": x})[0]
    got = batch.run(name, x)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("operator", "indices", "attributes"),
    [
        ("GatherND", [[0, 2], [0, -1]], {}),
        ("GatherND", [[[2], [-1]]], {"batch_dims": 1}),
        ("Gather", [[0, 3, -1]], {"axis": 1}),
    ],
)
def test_tables_of_indices_in_one_row(operator: str, indices: list[Any], attributes: dict[str, Any]) -> None:
    case = Case([node(operator, "x", "k", **attributes)], {"k": np.array(indices)})
    x = np.arange(288, dtype=np.float32).reshape(IMAGE)
    expected = ReferenceEvaluator(model_of(case)).run(None, {"x": x})[0]
    np.testing.assert_array_equal(run(from_onnx(model_of(case)), x), expected)


def test_negative_pads_crop() -> None:  # numpy.pad, and with it the evaluator, refuses them
    x = np.arange(288, dtype=np.float32).reshape(IMAGE)
    case = Case([node("Pad", "x", "pads")], {"pads": ints(0, 0, -1, 2, 0, 0, 0, -3)})
    np.testing.assert_array_equal(
        run(from_onnx(model_of(case)), x), np.pad(x[:, :, 1:, :5], [(0, 0), (0, 0), (0, 0), (2, 0)])
    )


def test_no_kernels_and_no_shape_arithmetic(batch: Batch) -> None:
    for name in CASES:
        mod = batch.module(name)
        assert [gv.name_hint for gv in mod.functions] == ["main"], name
        tables = {"int64"} if "Resize" in name or "Elements" in name else set()
        assert {str(p.ty.dtype) for p in mod["main"].params} <= {"float32"} | tables, name


def test_parameters_are_stored_as_the_graph_names_them(batch: Batch) -> None:
    def params(name: str) -> dict[str, tuple[int, ...]]:
        return {p.name: tuple(map(int, p.ty.shape)) for p in batch.module(name)["main"].params[1:]}

    assert params("Conv") == {"w": (6, 4, 3, 3), "b": (6,)}
    assert params("Gemm") == {"w": (7, 5), "b": (7,)}
    assert params("Arithmetic") == {"b": (4,)}  # stored as [1, 4, 1, 1]
    assert params("BatchNormalization as arithmetic") == {"t3": (4,), "t5": (4,)}
    assert params("Clip") == params("Resize") == params("Reshape") == {}
