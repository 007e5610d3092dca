"""Networks that call inputs and parameters like what the library makes: nothing is merged, and it says what it renamed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tvm_tinytrain as tt
from tests.compiled import loaded
from tvm_tinytrain import pipeline
from tvm_tinytrain.errors import KernelError
from tvm_tinytrain.passes.reserve_names import ReserveNames, is_reserved
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.selection import TaskAdaptive

WIDTH = 4
ROWS = UpdatePlan((LayerUpdate(0, (0, 2)), LayerUpdate(1, (0, 1, 2), inputs=(1, 3))))
ADAPTIVE: dict[str, Any] = {"update": TaskAdaptive(candidates=2)}


def network(inputs: Sequence[str] = ("x",), params: Sequence[str] = (), layer: str = "a") -> nn.Module:
    """relu(Σ inputs · layer) · params… · fc, each parameter a matrix, with the names that are asked for."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, layer, nn.Linear(WIDTH, WIDTH))
            for name in params:
                self.register_parameter(name, nn.Parameter(torch.randn(WIDTH, WIDTH)))
            self.fc = nn.Linear(WIDTH, 3)

        def run(self, *xs: Tensor) -> Tensor:
            y = torch.relu(getattr(self, layer)(sum(xs)))
            for name in params:
                y = torch.relu(nn.functional.linear(y, getattr(self, name)))
            return self.fc(y)

    scope: dict[str, Any] = {}
    exec(f"def forward(self, {', '.join(inputs)}): return self.run({', '.join(inputs)})", scope)
    Net.forward = scope["forward"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Net().eval()


def built(net: nn.Module, inputs: int = 1, **options: Any) -> tt.TrainModule:
    return tt.build(net, "host", example_inputs=(torch.zeros(1, WIDTH),) * inputs, **options)


OF_LIBRARIES: list[dict[str, Any]] = [
    {"update": ROWS, "optimizer": tt.SGD(0.1, momentum=0.9), "accumulate": True},
    {"update": ROWS, "optimizer": tt.Adam(0.1)},
    {"optimizer": tt.Adam(0.1, state="bfloat16"), "loss": tt.Prototypical(), "accumulate": True},
    {"update": TaskAdaptive(candidates=2, criterion="l2"), "optimizer": tt.Adam(0.1, state="int8")},
    {**ADAPTIVE, "optimizer": tt.SGD(0.1), "accumulate": False, "loss": tt.MSE()},
]


@pytest.mark.parametrize(
    "options", OF_LIBRARIES, ids=["momentum", "adam", "prototypical", "adaptive", "step"]
)
def test_all_names_of_the_library_are_reserved(options: dict[str, Any]) -> None:
    net = network()
    module = built(net, **options)
    params = {name.replace(".", "_") for name, _ in net.named_parameters()}
    tensors = {t["name"] for t in module.metadata["tensors"]}
    tensors |= {s.name for s in module.program.storages if "." not in s.name}
    header, internal = (module.files[f"tt_model{end}.h"].decode() for end in ("", "_internal"))
    symbols = set(re.findall(r"\btt_model_(\w+)[(\[;]", header + internal))
    assert "predict" in symbols
    unknown = {name for name in tensors | symbols if not is_reserved(name, params)} - params - {"x"}
    assert not unknown
    macros = set(re.findall(r"#define TT_MODEL_(\w+)_(?:OFFSET|BYTES|ALIGN)\b", header)) - {"X"}
    twins = built(network([m.lower() for m in sorted(macros)]), len(macros))
    assert {t["name"] for t in twins.metadata["tensors"] if t["role"] == "input"} == {
        f"p_{m.lower()}" for m in macros
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hyper", {}),
        ("label", {}),
        ("seed", {"loss": tt.Prototypical()}),
        ("output", {}),
        ("loss", {}),
        ("g_fc_weight", {"accumulate": True}),
        ("a_weight_rows", {"update": ROWS}),
        ("inputs_1", {"update": ROWS}),
        ("channels_1", ADAPTIVE),
        ("delta_0", ADAPTIVE),
        ("request", ADAPTIVE),
    ],
)
def test_no_two_tensors_share_a_name(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = pipeline.canonicalise
    assert any(isinstance(p, ReserveNames) for p in passes())
    monkeypatch.setattr(
        pipeline, "canonicalise", lambda *a: [p for p in passes(*a) if not isinstance(p, ReserveNames)]
    )
    with pytest.raises(KernelError, match=f"tensor {name}: found another tensor of that name"):
        built(network([name]), **options)


def test_renamed_things_are_reported() -> None:
    module = built(network(["hyper"], ["step"]))
    assert module.metadata["renamed"] == {"hyper": "p_hyper", "step": "p_step"}
    assert "names: hyper is p_hyper, step is p_step\n" in module.report()
    plain = built(network())
    assert plain.metadata["renamed"] == {}
    assert "renamed" not in plain.report()


@pytest.mark.host_compiler
def test_input_called_as_the_optimizers_numbers() -> None:
    net = network(["hyper"])
    x = np.full((1, WIDTH), 5.0, np.float32)
    library = loaded(built(net, update=tt.LastLayer(), optimizer=tt.SGD(0.01)))
    before = library.read("fc_bias")
    loss = torch.nn.functional.cross_entropy(net(torch.tensor(x)), torch.tensor([1]))
    loss.backward()
    assert library.step(x, 1) == pytest.approx(loss.item(), abs=1e-6)
    due = -0.01 * net.get_parameter("fc.bias").grad.numpy()
    np.testing.assert_allclose(library.read("fc_bias") - before, due, atol=1e-6)


@pytest.mark.host_compiler
@pytest.mark.parametrize("loss", [tt.CrossEntropy(), tt.MSE()])
def test_second_input_called_label(loss: Any) -> None:
    net = network(["x", "label"])
    x = np.ones((1, WIDTH), np.float32)
    library = loaded(built(net, 2, update=tt.LastLayer(), loss=loss))
    library.write("x", x)
    library.write("p_label", 2 * x)
    y = net(torch.tensor(x), torch.tensor(2 * x))
    if isinstance(loss, tt.MSE):
        library.write("label", np.ones((1, 3), np.float32))
        expected = torch.nn.functional.mse_loss(y, torch.ones(1, 3))
    else:
        library.write("label", np.array([2], np.int32))
        expected = torch.nn.functional.cross_entropy(y, torch.tensor([2]))
    library.call("step")
    assert library.read("loss")[0] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.host_compiler
@pytest.mark.parametrize(("inputs", "layer"), [(["delta_x"], "channels_mix"), (["plan"], "delta_net")])
def test_adaptive_library_of_a_network_with_its_names(inputs: list[str], layer: str) -> None:
    params = [
        "delta_0",
        "slot",
        "request",
        "options",
        "squared_norms",
        "install",
        "release",
        "save",
        "load",
        "fisher_begin",
    ]
    net = network(inputs, params, layer)
    library = loaded(built(net, update=TaskAdaptive(candidates=[0, 11], criterion="l2")), cflags=("-O0",))
    x = np.ones((1, WIDTH), np.float32)
    np.testing.assert_allclose(library.predict(x), net(torch.tensor(x)).detach(), atol=1e-6)
    learnt = library.learn(np.repeat(x, 3, 0), np.array([0, 1, 2]), iterations=1, lr=0.1)
    assert learnt.plan is not None
    assert set(learnt.plan) <= {0, 11}
