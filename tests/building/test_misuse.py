"""Networks and calls that are nearly right: each works as PyTorch does, or says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvm_tinytrain as tt
from tvm_tinytrain.errors import ArchiveError, PlanError, TinyTrainError
from tvm_tinytrain.fewshot.methods import build_methods
from tvm_tinytrain.micro import Session, generate_project
from tvm_tinytrain.micro.in_process import InProcess

ROW = torch.tensor([[0.5, -1.0, 2.0, 0.25]])
IMAGE = torch.zeros(1, 3, 6, 6)


class Wrap(nn.Module):
    """``forward(module, x)`` with two linear layers at hand."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(1))
        self.body = forward

    def forward(self, *args: torch.Tensor) -> Any:
        return self.body(self, *args)


def wrap(forward: Callable[..., Any]) -> Wrap:
    torch.manual_seed(0)
    return Wrap(forward).eval()


def build(net: nn.Module, *inputs: torch.Tensor, **options: Any) -> tt.TrainModule:
    return tt.build(net, "host", **{"example_inputs": inputs or (ROW,), **options})


def in_place(net: Wrap, x: torch.Tensor) -> torch.Tensor:
    y = net.a(x)
    y.view(-1).mul_(3.0)
    z = net.b(y.relu())
    z += y
    return z


def tied(net: Wrap, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(torch.relu(net.a(x)), net.a.weight, net.b.bias)


def tied_without_the_first_bias(net: Wrap, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(nn.functional.linear(x, net.a.weight), net.a.weight, net.b.bias)


def twice(net: Wrap, x: torch.Tensor) -> torch.Tensor:
    return net.a(torch.relu(net.a(x)))


@pytest.mark.host_compiler
@pytest.mark.parametrize("forward", [in_place, tied, tied_without_the_first_bias, twice])
def test_it_trains_as_pytorch_does(forward: Callable[..., Any]) -> None:
    net = wrap(forward)
    module = build(net, optimizer=tt.SGD(0.1))
    optimizer = torch.optim.SGD(list(net.parameters()), 0.1)
    with InProcess(module) as library:
        for label in (0, 3, 1, 2):
            loss = nn.functional.cross_entropy(net(ROW), torch.tensor([label]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert library.step(ROW, label) == pytest.approx(loss.item(), rel=1e-5)
        np.testing.assert_allclose(library.predict(ROW), net(ROW).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.host_compiler
@pytest.mark.parametrize("exported", [False, True])
def test_training_mode_is_left_out(exported: bool) -> None:
    """Batch norm by its running statistics, no dropout: as in evaluation mode."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2)).train()
    nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    x = torch.randn(IMAGE.shape)
    given = (
        (torch.export.export(net, (x,)), {"example_inputs": None})
        if exported
        else (net, {"example_inputs": (x,)})
    )
    with InProcess(tt.build(given[0], "host", **given[1])) as library:
        got = library.predict(x)
    np.testing.assert_allclose(got, net.eval()(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.host_compiler
def test_two_inputs_are_written_by_name() -> None:
    net, other = wrap(lambda n, x, y: n.a(x) + n.b(y)), torch.ones(1, 4)
    with InProcess(build(net, ROW, other)) as library:
        names = [name for name, t in library.tensors.items() if t.role == "input"]
        for call in (
            lambda: library.predict(ROW),
            lambda: library.step(ROW, 1),
            lambda: library.learn(ROW, np.array([1])),
        ):
            with pytest.raises(TinyTrainError, match="exactly one"):
                call()
        for name, value in zip(names, (ROW, other), strict=True):
            library.write(name, value)
        library.call("predict")
        np.testing.assert_allclose(library.read("output"), net(ROW, other).detach().numpy(), rtol=1e-5)


def remembers(net: Wrap, x: torch.Tensor) -> torch.Tensor:
    net.seen += 1
    return net.a(x) + net.seen


def with_infinite_weight() -> Wrap:
    net = wrap(twice)
    with torch.no_grad():
        net.a.weight[0, 0] = float("inf")
    return net


PLAIN = wrap(lambda n, x: n.a(x))
SMALL = tt.Budget(memory="64KB")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: build(PLAIN, example_inputs=ROW), "example_inputs: found Tensor; allowed a tuple"),
        (lambda: build(PLAIN, example_inputs=(ROW.numpy(),)), "example_inputs: found a tuple of ndarray"),
        (lambda: build(PLAIN, example_inputs=(ROW, 3)), "found a tuple of Tensor, int"),
        (lambda: build(PLAIN, torch.zeros(1, 5)), r"torch.export with float32\[1, 5\]: .*check the inputs"),
        (lambda: build(PLAIN, ROW.double()), "input args_0: found float64; allowed float32"),
        (
            lambda: build(PLAIN, ROW.long()),
            "input args_0: found int64; allowed float32; turn it into float32",
        ),
        (
            lambda: build(wrap(lambda n, x: n.a(x) if x.sum() > 0 else n.b(x))),
            "torch.export .*data-dependent",
        ),
        (lambda: build(torch.jit.script(nn.Linear(4, 4))), "torch.export .*ScriptModule"),
        (lambda: build(wrap(lambda n, x: (n.a(x), n.b(x)))), "result: found 2 tensors; allowed one tensor"),
        (lambda: build(wrap(lambda n, x: torch.fft.fft(n.a(x)).real)), "operators of TVM's torch front end"),
        (lambda: build(wrap(remembers)), "buffer seen: found changed by the network"),
        (lambda: build(with_infinite_weight()), "parameter a_weight: found inf; allowed finite weights"),
        (lambda: build(PLAIN, params={"x": 1}), "params: found values; allowed none: a Wrap has its own"),
        (lambda: build(PLAIN, loss="mse"), "loss: found 'mse'; allowed an object of CrossEntropy, MSE"),
        (lambda: build(PLAIN, optimizer=tt.Adam), "optimizer: found <class .*write e.g. optimizer=tt.SGD"),
        (
            lambda: build(PLAIN, optimizer=torch.optim.SGD(PLAIN.parameters(), 0.1)),
            "optimizer: found torch.optim.sgd.SGD",
        ),
        (lambda: build(PLAIN, budget="64KB"), "budget: found '64KB'; allowed an object of Budget"),
        (lambda: build(PLAIN, memory="lowest"), "memory: found 'lowest'; allowed an object of MemoryOptions"),
        (lambda: build(PLAIN, name=3), "name: found 3; allowed a C identifier"),
        (lambda: build(PLAIN, records=3), "records: found int; allowed a path, or records"),
        (lambda: build(PLAIN, records=["a.json"]), "records: found str; allowed a path, or records"),
        (lambda: build(PLAIN, also_train="a_bias"), "also_train: found 'a_bias'; allowed a sequence"),
        (
            lambda: build(PLAIN, also_train=("b_bias",)),
            "found b_bias; allowed the layers' own, such as a_weight;",
        ),
        (
            lambda: build(wrap(lambda n, x: torch.round(n.a(x)) + n.b(x))),
            r"layer 0 \(a_weight\): found no gradient: only steps .* leave it out of what is trained",
        ),
        (
            lambda: build(wrap(lambda n, x: n.b(torch.sign(n.a(x)))), update=tt.TaskAdaptive(candidates=2)),
            r"layer 0 \(a_weight\): found no gradient: only steps",
        ),
        (
            lambda: build(PLAIN, update=tt.TaskAdaptive(), budget=SMALL, also_train=("a_bias",)),
            "task-adaptive: also_train: found a_bias",
        ),
        (lambda: tt.Budget(compute="all"), "compute budget: found all; allowed a fraction"),  # type: ignore[arg-type]
        (lambda: tt.Budget(memory=[1]), r"memory budget: found \[1\]; allowed bytes"),  # type: ignore[arg-type]
        (lambda: tt.BiasOnly(0), "BiasOnly last: found 0; allowed a whole number, 1 or more"),
        (lambda: tt.TaskAdaptive(candidates=0), "candidates: found 0; allowed a number of layers from 1"),
        (lambda: tt.TaskAdaptive(candidates="all"), "candidates: found 'all'"),  # type: ignore[arg-type]
        (lambda: tt.TaskAdaptive(channel_ratio="x"), "channel_ratio: found 'x'"),  # type: ignore[arg-type]
        (lambda: tt.TaskAdaptive(candidates=True), "candidates: found True; allowed a number of layers"),
        (lambda: tt.TaskAdaptive(blocks=1.5), "blocks: found 1.5; allowed a whole number, 1 or more"),  # type: ignore[arg-type]
        (lambda: tt.TaskAdaptive(seed=1.5), "seed: found 1.5; allowed a whole number; "),  # type: ignore[arg-type]
        (
            lambda: tt.TaskAdaptive(cached_samples=2.5),
            "cached_samples: found 2.5; allowed a whole number, 0 to",
        ),  # type: ignore[arg-type]
        (lambda: tt.TaskAdaptive(cache_bytes=10.5), "cache_bytes: found 10.5; allowed bytes as a number"),  # type: ignore[arg-type]
        (lambda: tt.TaskAdaptive(cache_bytes="1GB"), "cache_bytes: found '1GB'; .* cache_bytes='256KB'"),
        (
            lambda: tt.TaskAdaptive(cache_bytes=1 << 32),
            "cache_bytes: found 4294967296; allowed a whole number",
        ),
        (lambda: tt.Adam(betas=(0.9,)), r"Adam betas: found \(0.9,\); allowed two numbers"),  # type: ignore[arg-type]
        (lambda: tt.AdamW(betas=0.9), "AdamW betas: found 0.9; allowed two numbers"),  # type: ignore[arg-type]
        (lambda: tt.SGD(lr=1e39), r"SGD lr: found 1e\+39; allowed a number of at least 0 that is finite"),
        (lambda: tt.SGD(lr=True), "SGD lr: found True"),
        (lambda: tt.Prototypical(scale="a"), "scale: found 'a'; allowed a positive float32"),  # type: ignore[arg-type]
        (lambda: tt.Prototypical(scale=float("inf")), "scale: found inf; allowed a positive float32"),
        (lambda: tt.Prototypical(scale=1e-60), "scale: found 1e-60; allowed a positive float32"),
        (lambda: tt.MemoryOptions(input_scale=1e-50), "input_scale: found 1e-50; allowed .*, not 0"),
        (lambda: tt.Adam(betas=(0.9, 1 - 1e-9)), "Adam betas: found 0.99.*below 1"),
        (lambda: tt.BiasOnly(True), "BiasOnly last: found True; allowed a whole number"),
        (lambda: tt.TinyTL(kernel=2.5), "TinyTL kernel: found 2.5; allowed a whole number, 1 or more"),  # type: ignore[arg-type]
        (lambda: tt.TinyTL(gain=float("nan")), "TinyTL gain: found nan; allowed a finite number"),
        (lambda: tt.AdapterDrop("0.5"), "AdapterDrop: found '0.5'; allowed a share"),  # type: ignore[arg-type]
        (lambda: tt.AdapterDrop(0.5, tt.TinyTL), "AdapterDrop modules: found type; allowed a TinyTL"),  # type: ignore[arg-type]
        (lambda: tt.Budget(memory=True), "memory budget: found True; allowed bytes as a number"),
        (lambda: tt.Budget(compute=True), "compute budget: found True; allowed a fraction"),
        (
            lambda: build(PLAIN, budget=tt.Budget(compute=0.001)),
            "compute budget: found 0.001; allowed None for a fixed update; .*TaskAdaptive",
        ),
        (
            lambda: build(PLAIN, update=tt.LastLayer(), budget=tt.Budget(compute=1)),
            "compute budget: found 1; allowed None for a fixed update",
        ),
        (lambda: tt.MemoryOptions(input_scale=float("nan")), "input_scale: found nan; allowed a finite"),
        (lambda: build(PLAIN, update=tt.TaskAdaptive(blocks=2), budget=SMALL), "no depthwise convolution"),
        (lambda: Session("net.tar", "host"), r"session: module: found str; .*tt\.load"),  # type: ignore[arg-type]
        (lambda: InProcess("net.tar"), r"library: module: found str; .*tt\.load"),
        (lambda: InProcess(build(PLAIN), cflags="-O1 -g"), r"cflags: found '-O1 -g'; .*\['-O1', '-g'\]"),
        (lambda: generate_project(None, "host", "unused"), r"project: module: found NoneType; .*tt\.load"),  # type: ignore[arg-type]
        (
            lambda: generate_project(build(PLAIN), ["host"], "unused"),
            r"board: name: found \['host'\]; allowed host",
        ),  # type: ignore[arg-type]
        (lambda: Session(build(PLAIN), "host", port=5), "port: found 5; allowed a device or an address"),  # type: ignore[arg-type]
        (lambda: Session(build(PLAIN), "host", timeout_s="3"), "timeout_s: found '3'; allowed seconds"),  # type: ignore[arg-type]
        (lambda: Session(build(PLAIN), "host", timeout_s=-1), "timeout_s: found -1; allowed seconds"),
        (lambda: Session(build(PLAIN), "host", start_s=0), "start_s: found 0; allowed seconds"),
        (lambda: tt.tune(PLAIN, trials="64"), "trials: found '64'; allowed a whole number"),  # type: ignore[arg-type]
    ],
)
def test_it_is_refused(call: Callable[[], object], text: str) -> None:
    with pytest.raises(TinyTrainError, match=text):
        call()


@pytest.mark.host_compiler
def test_calls_of_a_library() -> None:
    with InProcess(build(PLAIN)) as library:
        want = PLAIN(ROW).detach().numpy()
        for same in (ROW, ROW[0], ROW.tolist(), ROW.numpy()):  # a batch axis of one, plain numbers
            np.testing.assert_allclose(library.predict(same), want, rtol=1e-5)
        plan = tt.UpdatePlan.from_channels({0: (0,)})
        wrong: list[tuple[Callable[[], object], str]] = [
            (lambda: library.predict(ROW.double()), "found float64; allowed float32"),
            (lambda: library.predict(ROW[:, :2]), r"found \(1, 2\); allowed \(1, 4\)"),
            (lambda: library.step(ROW, 1.5), "tensor label: found float64; allowed int32"),
            (lambda: library.step(ROW, 1 << 40), "tensor label: found 1099511627776 to"),
            (lambda: library.step(ROW, [1, 2]), r"tensor label: found \(2,\)"),
            (
                lambda: library.step(ROW, 4),
                "status -4: a tensor that was written holds a value out of its range",
            ),
            (lambda: library.call("train"), "entry: found 'train'; allowed init, predict, step"),
            (lambda: library.read("weight"), "tensor: found 'weight'; allowed x|tensor: found 'weight'"),
            (lambda: library.learn(ROW, [1], plan=plan), "plan: found one for a library of a fixed plan"),
            (lambda: library.learn(ROW * float("nan"), [1]), "samples: found nan or infinity"),
            (
                lambda: library.learn(ROW, [1 << 32]),
                "labels: found 4294967296 to 4294967296; allowed 0 to 3",
            ),
            (lambda: library.learn(ROW, [1], lr=1e39), r"lr: found 1e\+39; allowed a finite number"),
            (
                lambda: library.learn(ROW, [1], iterations=True),
                "iterations: found True; allowed a whole number",
            ),
            (
                lambda: library.learn(ROW, [1], queries=lambda x, rng: x * np.float32("inf")),
                "pseudo-queries: found nan or infinity",
            ),
            (
                lambda: library.predict(ROW.numpy() * np.nan),
                "tensor .*: found nan or infinity; allowed finite",
            ),
            (
                lambda: library.step([0.0, 1e39, 0.0, 0.0], 1),
                "tensor .*: found nan or infinity; allowed finite",
            ),
            (lambda: library.learn(ROW, [1], queries=3), "queries: found 3"),
            (lambda: library.learn(ROW, [1], progress=3), "progress: found 3; allowed a function"),
            (lambda: library.learn(ROW.clone().requires_grad_(), [1]), "samples: found .*detach"),
            (
                lambda: library.learn(ROW.numpy() + 1j, [1]),
                "samples: found complex.*; allowed real numbers",
            ),
            (lambda: library.learn(ROW, [1], seed=-1), "seed: found -1"),
        ]
        for call, text in wrong:
            with pytest.raises(TinyTrainError, match=text):
                call()


def test_what_needs_no_network_is_refused_before_one_is_read(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.pt2")
    with pytest.raises(PlanError, match=r"scheme: found 'mcunet-99k'; allowed .*mcunet-99kb"):
        tt.build(absent, update=tt.SparseUpdate("mcunet-99k"))
    with pytest.raises(PlanError, match="scheme: found 'mcunet-99k'"):
        build_methods(absent, (), ("none", "sparseupdate"), scheme="mcunet-99k")
    with pytest.raises(ArchiveError, match=r"records: .*absent\.json"):
        tt.build(absent, records=tmp_path / "absent.json")
