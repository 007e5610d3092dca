"""Bad input: the type of the error and its one line — stage, thing, found, allowed, what to do — and nothing written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tvm.script import ir as I
from tvm.script import relax as R

from tests.emit.libraries import Small, small
from tvm_tinytrain.build import build
from tvm_tinytrain.config import MSE, SGD, Adam, AdamW, Budget, CrossEntropy, LastLayer
from tvm_tinytrain.errors import (
    BudgetError,
    DTypeError,
    ImportModelError,
    PlanError,
    ShapeError,
    TargetError,
    TinyTrainError,
    UnsupportedOperatorError,
)
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan
from tvm_tinytrain.targets.runtime_files import taken_names

ZEROS = torch.zeros(1, *Small.shape)


class Wrapped(nn.Module):
    """A layer, a function, a layer: `function` decides what is unusual about the network."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.function = function
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def refuse(error: type[TinyTrainError], text: str, net: Any = None, **options: Any) -> TinyTrainError:
    """build() must raise exactly `error`, in one line that `text` matches from its start."""
    net = small() if net is None else net
    inputs = options.pop("example_inputs", (ZEROS,))
    with pytest.raises(TinyTrainError) as caught:
        build(net, example_inputs=inputs, **options)
    assert type(caught.value) is error, repr(caught.value)
    message = str(caught.value)
    assert re.match(text, message), message
    assert re.fullmatch(r".+?: .+: found .+; allowed .+; .+", message), (
        "stage: thing: found; allowed; what to do"
    )
    assert "\n" not in message
    return caught.value


def test_operator_that_the_front_end_does_not_know() -> None:
    net = Wrapped(lambda x: torch.linalg.svdvals(x.reshape(2, 2)).repeat(1, 2))
    refuse(UnsupportedOperatorError, "frontend: .*svd", net, example_inputs=(torch.ones(1, 4),))


def test_operator_without_gradient() -> None:
    net = Wrapped(lambda x: torch.sort(x, dim=1).values)
    text = r"derive backward: relax\.\w+ at .*: found no gradient; allowed operators of the gradient table; select layers behind it"
    refuse(UnsupportedOperatorError, text, net, example_inputs=(torch.ones(1, 4),))


def test_operator_without_gradient_in_front_of_what_is_trained_is_none() -> None:
    net = Wrapped(torch.floor)
    assert build(net, example_inputs=(torch.ones(1, 4),), update=LastLayer()).metadata["entries"]


def test_dynamic_shape() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    shapes = {"input": {3: torch.export.Dim("width", min=2, max=64)}}
    program = torch.export.export(net, (torch.zeros(1, 2, 8, 8),), dynamic_shapes=shapes)
    refuse(
        ShapeError,
        r"frontend: tensor .*: found shape .*; allowed constants in every dimension; export",
        program,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_wrong_dtype(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    text = rf"frontend: (input|parameter) \w+: found {name}; allowed float32; convert the network with model\.float\(\)"
    refuse(DTypeError, text, small().to(dtype), example_inputs=(ZEROS.to(dtype),))


def test_integer_input() -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3))
    refuse(
        DTypeError,
        r"frontend: input \w+: found int64; allowed float32",
        net,
        example_inputs=(torch.zeros(1, 2, dtype=torch.int64),),
    )


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("cuda", r"target: cuda: found kind 'cuda'; allowed host, c, llvm"),
        (
            "c -mcpu=cortex-m99",
            r"target: c -mcpu=cortex-m99: found core 'cortex-m99'; allowed host, cortex-m0plus, .*cortex-m7",
        ),
        ({"kind": "c", "cpu": "cortex-m7"}, r"target: .*: found option 'cpu'; allowed kind, mcpu"),
        ("", "target: text: found nothing"),
        (7, "target: 7: found int; allowed text, a mapping or a TVM target"),
        (
            "c -mcpu=cortex-m7 -mtriple=x86_64-linux-gnu",
            "target: .*: found triple x86_64-linux-gnu with cortex-m7",
        ),
    ],
)
def test_unknown_target(target: object, text: str) -> None:
    refuse(TargetError, text, target=target)


def test_budget_that_cannot_be_met() -> None:
    whole = build(small(), example_inputs=(ZEROS,)).metadata["memory"]["arena_bytes"]
    error = refuse(
        BudgetError, r"plan memory \(step\): buffers live at step \d+ \(", budget=Budget(memory=whole - 8)
    )
    over, live = (int(re.search(rf"{p}(\d+)", str(error.found))[1]) for p in ("bytes, ", "live at once: "))
    assert over == 8 and live <= whole
    sizes = [int(size) for size in re.findall(r"(?<=[ f])(\d+)(?=[,)]| bytes)", error.thing)]
    assert sum(sizes) == live, "the buffers named, and the bytes of those that are not, are all that lives"
    assert re.search(r"conv_weight \d+", error.thing) and "step." in error.thing


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        ("lots", "config: memory budget: found 'lots'; allowed bytes as a number"),
        (0, "config: memory budget: found 0; allowed more than 0 bytes"),
        ("3 TB", "config: memory budget: found '3 TB'"),
    ],
)
def test_budget_that_is_none(memory: Any, text: str) -> None:
    with pytest.raises(BudgetError, match=text):
        Budget(memory=memory)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        (
            UpdatePlan.from_channels({9: (0,)}),
            "prune backward: layer 9: found not in the network; allowed 0 to 3; see",
        ),
        (
            UpdatePlan.from_channels({1: (0, 2)}),
            r"prune backward: layer 1 \(depthwise_weight\): found channel 2; allowed 0 to 1",
        ),
        (
            UpdatePlan((LayerUpdate(3, (0,), (2,)),)),
            r"prune backward: layer 3 \(head_weight\): found input channel 2; allowed 0 to 1",
        ),
        (UpdatePlan(), "prune backward: update plan: found no layers; allowed at least one"),
    ],
    ids=["layer", "channel", "input", "empty"],
)
def test_plan_of_another_network(plan: UpdatePlan, text: str) -> None:
    refuse(PlanError, text, update=plan)


@pytest.mark.parametrize("name", ["", "2fast", "my-net", "a b", "größe", "x;y", "int main"])
def test_bad_name(name: str) -> None:
    refuse(
        PlanError, "config: name: found .*; allowed a C identifier; choose letters, digits and _", name=name
    )


TAKEN = "loop port server frame paint standalone rows select session checkpoint cache cortex_m decoder data active config linked Loop"


@pytest.mark.parametrize("name", TAKEN.split())
def test_a_name_of_the_runtimes_own(name: str) -> None:
    """Fixed libraries too: exports and firmwares put the runtime beside them."""
    refuse(
        PlanError, f"config: name: found '{name}'; allowed a name other than active, .*loop.*port", name=name
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("net_internal", "found 'net_internal'; allowed no name that ends in .*; a library 'net' would have"),
        ("my_net_params", "a library 'my_net' would have"),
        ("net_kernels", "a library 'net' would have"),
    ],
)
def test_a_name_whose_files_may_be_another_librarys(name: str, text: str) -> None:
    """`net_internal` and `net` shared a file."""
    refuse(PlanError, f"config: name: .*{text}", name=name)


def test_names_near_to_the_runtimes_own_are_free() -> None:
    assert not {"model", "net", "digits", "loops", "viewport", "main"} & set(taken_names())


def test_network_without_layers() -> None:
    refuse(
        PlanError, "update: network: found no convolution or linear layer; allowed at least one", nn.ReLU()
    )


def test_cross_entropy_of_an_image() -> None:
    net = nn.Conv2d(1, 3, 1)
    refuse(
        ShapeError, r"append loss: network output: found shape \(1, 3, 4, 4\); allowed \[1, classes\]", net
    )
    assert build(net, example_inputs=(ZEROS,), loss=MSE()).files


def test_batches() -> None:
    text = "lower layers: relax.nn.conv2d: found batch of 2; allowed 1"
    refuse(UnsupportedOperatorError, text, example_inputs=(torch.zeros(2, *Small.shape),))


def test_missing_example_inputs() -> None:
    refuse(ImportModelError, "frontend: example_inputs: found none", example_inputs=None)


@pytest.mark.parametrize("thing", [3, "absent.pt2", None, {"a": 1}])
def test_what_is_no_network(thing: Any) -> None:
    refuse(
        ImportModelError,
        r"frontend: (model|path): found ",
        {"thing": thing}["thing"] if thing is not None else object(),
    )


@I.ir_module
class Relax:
    @R.function
    def main(x: R.Tensor((1, 3), "float32"), w: R.Tensor((3, 2), "float32")):
        with R.dataflow():
            y = R.matmul(x, w)
            R.output(y)
        return y


def test_relax_module_without_values() -> None:
    refuse(
        ImportModelError, "frontend: parameter w: found no value; allowed a value for every parameter", Relax
    )


def test_relax_module_with_values_of_another_shape() -> None:
    with pytest.raises(TinyTrainError, match=r"frontend: parameter w: found .*3, 3.*; allowed .*3, 2"):
        build(Relax, params={"w": np.zeros((3, 3), np.float32)})


def test_values_that_are_no_numbers() -> None:
    net = small()
    with torch.no_grad():
        net.head.bias[1] = float("nan")
    refuse(ImportModelError, r"frontend: parameter head_bias: found nan; allowed finite", net)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SGD(-1.0), r"SGD lr: found -1\.0; allowed a number of at least 0 that is finite"),
        (lambda: SGD(float("nan")), "SGD lr: found nan"),
        (lambda: SGD("0.1"), "SGD lr: found '0.1'"),
        (lambda: SGD(momentum=-0.9), "SGD momentum"),
        (lambda: SGD(nesterov=True), "SGD nesterov: found momentum 0; allowed a momentum"),
        (lambda: Adam(float("inf")), "Adam lr: found inf"),
        (
            lambda: AdamW(betas=(0.9, 1.0)),
            r"AdamW betas: found 1\.0; allowed a number of at least 0, below 1",
        ),
        (lambda: Adam(eps=-1e-8), "Adam eps"),
        (lambda: CrossEntropy(1.5), r"label_smoothing: found 1\.5; allowed .* below 1"),
    ],
)
def test_numbers_that_make_no_optimizer(make: Any, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        make()


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build(small(), example_inputs=(ZEROS,))
    refuse(TargetError, "target", target="cuda")
    refuse(BudgetError, "plan memory", budget=Budget(memory=100))
    assert list(tmp_path.iterdir()) == []
