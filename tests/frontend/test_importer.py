"""`import_model`: every kind of model, every kind of file, and what is no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
import tvm
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from tvm import relax

from tests.frontend.relay_writer import export_program, write_relay
from tests.frontend.running import run
from tvm_tinytrain.errors import DTypeError, ImportModelError, ShapeError, UnsupportedOperatorError
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.frontend.relay_text import from_relay_text
from tvm_tinytrain.passes.state import get_values

SHAPE = (1, 3, 6, 6)
X = torch.linspace(-1, 1, 108).reshape(SHAPE)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(64, 5)).eval()


def check(mod: tvm.IRModule, model: nn.Module, names: set[str]) -> None:
    np.testing.assert_allclose(run(mod, X), model(X).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert set(get_values(mod)) == names


NAMES = {"v0_weight", "v0_bias", "v3_weight", "v3_bias"}


def test_module_keeps_its_mode() -> None:
    model = network().train()
    mod = import_model(model, example_inputs=(X,))
    assert model.training
    check(mod, model, NAMES)


def test_the_same_example_for_two_inputs() -> None:
    class Weighted(nn.Module):
        def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return x + 2 * z

    example = torch.zeros(1, 2)
    mod = import_model(Weighted(), example_inputs=(example, example))
    first, second = torch.ones(1, 2), torch.full((1, 2), 5.0)
    np.testing.assert_array_equal(run(mod, first, second), [[11.0, 11.0]])


def test_exported_program() -> None:
    model = network()
    check(import_model(export_program(model, SHAPE)), model, NAMES)


def test_pt2_path(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "model.pt2"
    torch.export.save(export_program(model, SHAPE), path)
    check(import_model(path), model, NAMES)


def test_relay_path_takes_the_parameter_file_beside_it(tmp_path: Path) -> None:
    model = network()
    text, params = write_relay(export_program(model, SHAPE))
    (tmp_path / "model.relay").write_text(text)
    (tmp_path / "model.params").write_bytes(params)
    check(import_model(tmp_path / "model.relay"), model, NAMES)
    (tmp_path / "model.txt").write_text(text)
    check(import_model(str(tmp_path / "model.txt")), model, NAMES)


def test_given_parameters_go_before_the_file(tmp_path: Path) -> None:
    model = network()
    text, _ = write_relay(export_program(model, SHAPE))
    (tmp_path / "model.relay").write_text(text)
    (tmp_path / "model.params").write_bytes(b"not read")
    state = {f"v{name}": value for name, value in model.state_dict().items()}
    check(import_model(tmp_path / "model.relay", params=state), model, NAMES)


def test_relay_inputs_go_first() -> None:
    text = """
    def @main(%x: Tensor[(1, 4), float32], %v0.w: Tensor[(2, 4), float32], %y: Tensor[(1, 2), float32]) {
      %0 = nn.dense(%x, %v0.w);
      %1 = split(%0, indices_or_sections=2, axis=1);
      concatenate((%0 + %y, %1.1, %x), axis=1)
    }"""
    mod = from_relay_text(text, {"0.w": np.ones((2, 4)), "unused": np.ones(3)})
    assert [p.name for p in mod["main"].params] == ["x", "y", "v0_w"]
    output = run(mod, np.ones((1, 4), np.float32), np.ones((1, 2), np.float32))
    assert output.tolist() == [[5, 5, 4, 1, 1, 1, 1]]


def test_onnx_with_two_inputs() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Relu", ["c"], ["d"])]
    a, b, d = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "abd")
    model = helper.make_model(helper.make_graph(nodes, "g", [a, b], [d]))
    output = run(import_model(model), np.array([[1, -3]], np.float32), np.array([[1, 1]], np.float32))
    assert output.tolist() == [[2, 0]]


def test_onnx_model_and_path(tmp_path: Path) -> None:
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])],
        "fc",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(w, "fc.weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "fc.onnx")
    x = np.array([[1, 2]], np.float32)
    for source in (model, tmp_path / "fc.onnx"):
        mod = import_model(source)
        np.testing.assert_allclose(run(mod, x), x @ w)
        assert set(get_values(mod)) == {"fc_weight"}


def relax_module(dtype: str = "float32", batch: object = 1) -> tvm.IRModule:
    bb = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((batch, 2), dtype))
    w = relax.Var("w.a", relax.TensorType((2, 2), dtype))
    with bb.function("main", [x, w]):
        y = bb.emit(relax.op.matmul(x, w))
        z = bb.emit(relax.op.add(y, relax.const(np.array([1, 2], dtype))))
        bb.emit_func_output(z)
    return bb.get()


def test_relax_module() -> None:
    w = np.array([[1, 2], [3, 4]], np.float32)
    mod = import_model(relax_module(), params={"w.a": w})
    np.testing.assert_allclose(run(mod, np.array([[1, 1]], np.float32)), [[5, 8]])
    assert set(get_values(mod)) == {"w_a", "const_0"}


def test_relax_module_without_values() -> None:
    with pytest.raises(
        ImportModelError, match=r"frontend: parameter w\.a: found no value; .* pass params=\{name: array\}"
    ):
        import_model(relax_module())


def test_relax_module_with_a_symbolic_shape() -> None:
    mod = relax_module(batch=tvm.tirx.Var("n", "int64"))
    with pytest.raises(
        ShapeError, match=r"tensor x: found shape .*n.*; allowed constants in every dimension"
    ):
        import_model(mod, params={"w.a": np.zeros((2, 2), np.float32)})


def test_relax_module_of_halves() -> None:
    with pytest.raises(DTypeError, match=r"input x: found float16; allowed float32; .* model\.float\(\)"):
        import_model(relax_module("float16"), params={"w.a": np.zeros((2, 2), np.float16)})


def test_relax_module_without_main() -> None:
    mod = relax_module()
    with pytest.raises(ImportModelError, match=r"found functions \['other'\]; allowed a function main"):
        import_model(tvm.IRModule({"other": mod["main"].with_attr("global_symbol", "other")}))


def test_module_without_example_inputs() -> None:
    with pytest.raises(ImportModelError, match=r"example_inputs: found none; .*torch\.zeros"):
        import_model(network())


def test_operator_that_tvm_lacks() -> None:
    class Bessel(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    error = r"torch\.export program: .*bessel_j0.*; allowed .*; replace .* or add a converter in frontend/torch_converters\.py"
    with pytest.raises(UnsupportedOperatorError, match=error):
        import_model(Bessel(), example_inputs=(X,))


class Function(nn.Module):
    def __init__(self, function: Callable[[Function, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda s, x: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True), "antialias from .* to"),
        (
            lambda s, x: F.avg_pool2d(x, 4, 3, ceil_mode=True, divisor_override=3),
            "divisor_override with ceil",
        ),
        (lambda s, x: x[:, s.mask], "a mask as index; .* mask.nonzero"),
        (lambda s, x: x[:, [0, 1], :, [1, 2]], r"indices at axes \[1, 3\]"),
        (lambda s, x: torch.add(*F.max_pool2d(x, 2, return_indices=True)), "the indices of maxima"),
        (lambda s, x: F.adaptive_max_pool2d(x, 2, return_indices=True)[1].float(), "the indices of maxima"),
    ],
)
def test_operators_that_would_be_others(
    function: Callable[[Function, torch.Tensor], torch.Tensor], found: str
) -> None:
    with pytest.raises(UnsupportedOperatorError, match=rf"frontend: aten\..*: found {found}"):
        import_model(Function(function), example_inputs=(X,))


@pytest.mark.parametrize(
    "model",
    [
        nn.GroupNorm(3, 3, affine=False),
        nn.Sequential(nn.Unflatten(1, (1, 3)), nn.AvgPool3d(2, 1, 1, divisor_override=3)),
        nn.AvgPool2d((2, 3), divisor_override=5),
    ],
)
def test_arguments_that_tvm_drops_or_fails_on(model: nn.Module) -> None:
    np.testing.assert_allclose(
        run(import_model(model, example_inputs=(X,)), X), model(X), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("model", [None, 3, {"weight": 1}])
def test_what_is_no_model(model: object) -> None:
    with pytest.raises(
        ImportModelError, match=f"found {type(model).__name__}; .*torch.nn.Module, onnx.ModelProto"
    ):
        import_model(model)


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(ImportModelError, match=r"path: found .*missing\.onnx; allowed an existing file"):
        import_model(tmp_path / "missing.onnx")
    (tmp_path / "model.h5").touch()
    with pytest.raises(ImportModelError, match=r"found model\.h5; allowed \.pt2, \.onnx, \.relay or \.txt"):
        import_model(tmp_path / "model.h5")
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ImportModelError, match=r"weights\.pt; .*weights alone are no network: torch\.export"):
        import_model(tmp_path / "weights.pt")


def test_a_damaged_program_is_one_error_and_no_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.pt2").write_bytes(b"no zip file")
    with pytest.raises(ImportModelError, match=r"a whole \.pt2 file"):
        import_model(tmp_path / "net.pt2")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.relay"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\x00\x81damaged")
    with pytest.raises(ImportModelError, match=rf"frontend: {name}: .*; export or copy it again"):
        import_model(tmp_path / name)


def test_an_imported_module_goes_in_again() -> None:
    once = import_model(network(), example_inputs=(X,))
    again = import_model(once)
    assert get_values(again).keys() == get_values(once).keys()
    np.testing.assert_array_equal(run(again, X), run(once, X))


def test_tables_of_indices_are_parameters_too() -> None:
    net = nn.Sequential(nn.Upsample(size=(4, 5)), nn.Conv2d(3, 2, 1)).eval()
    once = import_model(net, example_inputs=(X,))
    assert {str(v.dtype) for v in get_values(once).values()} == {"float32", "int64"}
    np.testing.assert_allclose(run(import_model(once), X), net(X).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_import_of_an_import_changes_no_name_and_no_shape() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.weight = nn.Linear(6, 4), nn.Parameter(torch.tensor(0.5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.p(x) * self.weight

    once = import_model(Net().eval(), example_inputs=(torch.zeros(1, 6),))
    values = get_values(once)
    assert {n: v.shape for n, v in values.items()} == {"p_weight": (4, 6), "p_bias": (4,), "weight": ()}
    twice = get_values(import_model(once, params=values))
    assert {n: v.shape for n, v in twice.items()} == {n: v.shape for n, v in values.items()}
