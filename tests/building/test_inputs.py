"""Networks as build() takes them: an nn.Module, an ExportedProgram, a Relax IRModule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

import tvm_tinytrain
from tests.emit.libraries import Small, library, small
from tvm_tinytrain.build import build
from tvm_tinytrain.config import MSE, SGD
from tvm_tinytrain.micro.in_process import InProcess

ZEROS = torch.zeros(1, *Small.shape)
OPTIONS = {"optimizer": SGD(0.125), "name": "small"}


def test_public_names() -> None:
    assert tvm_tinytrain.build is build
    assert {"SGD", "FullTrain", "UpdatePlan", "Budget", "Instruments", "TinyTrainError"} <= set(
        dir(tvm_tinytrain)
    )


def test_exported_program_gives_the_same_bytes(tmp_path: Path) -> None:
    program = torch.export.export(small(), (ZEROS,))
    assert build(program, **OPTIONS).files == library().files
    torch.export.save(program, tmp_path / "net.pt2")
    assert build(tmp_path / "net.pt2", **OPTIONS).files == library().files


def test_relax_module_gives_the_same_computation() -> None:
    from tvm.relax.frontend.torch import from_exported_program

    mod = from_exported_program(
        torch.export.export(small(), (ZEROS,)), keep_params_as_input=True, unwrap_unit_return_tuple=True
    )
    mod, values = relax.frontend.detach_params(mod)
    given = dict(zip([p.name for p in mod["main"].params[1:]], values["main"], strict=True))
    module = build(mod, params=given, **OPTIONS)
    assert module.files["tt_small_kernels.c"] == library().files["tt_small_kernels.c"]
    written = module.files["tt_small_params.c"].decode()  # under the names that TVM's importer gave
    tables = written.replace("tt_small_p_", "tt_small_").replace("/* p_", "/* ").rstrip().split("\n\n")
    assert sorted(tables) == sorted(library().files["tt_small_params.c"].decode().rstrip().split("\n\n"))


def test_training_mode_of_the_module_is_restored() -> None:
    net = small().train()
    build(net, example_inputs=(ZEROS,), **OPTIONS)
    assert net.training
    assert library().files == build(net, example_inputs=(ZEROS,), **OPTIONS).files


@I.ir_module
class Linear:
    """A network written by hand, with a constant in its body."""

    @R.function
    def main(x: R.Tensor((1, 3), "float32"), w: R.Tensor((3, 2), "float32"), b: R.Tensor((2,), "float32")):
        with R.dataflow():
            y = R.matmul(x, w)
            z = R.add(y, b)
            o = R.multiply(z, R.const(2.0, "float32"))
            R.output(o)
        return o


@pytest.mark.host_compiler
def test_relax_module_by_hand_learns_as_numpy_says() -> None:
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    x, target = rng.normal(size=(1, 3)).astype(np.float32), rng.normal(size=(1, 2)).astype(np.float32)
    module = build(Linear, "host", params={"w": w, "b": b}, loss=MSE(), optimizer=SGD(0.1))
    with InProcess(module) as device:
        error = 2 * (x @ w + b) - target
        assert device.step(x, target) == pytest.approx((error**2).mean(), rel=1e-5)
        slope = 2 * error  # ∂/∂z of mean((2z − t)²) over two elements
        np.testing.assert_allclose(device.read("w"), (w - 0.1 * x.T @ slope).T, rtol=1e-5)
        np.testing.assert_allclose(device.read("b"), b - 0.1 * slope[0], rtol=1e-5)


@pytest.mark.host_compiler
def test_names_of_parameters_do_not_matter() -> None:
    """Parameters called like entries, kernels, tensors and optimizer state of the library."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            for name in ("mean", "step", "hyper", "output", "loss", "label", "multiply", "library", "init"):
                setattr(self, name, nn.Parameter(torch.rand(1, 3, 1, 1, generator=generator)))
            self.conv = nn.Conv2d(3, 4, 1)
            self.m = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1)})
            self.g = nn.ModuleDict({"conv": nn.Conv2d(4, 4, 1)})
            self.head = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = (x - self.mean) * self.step + self.hyper * self.output - self.loss * self.multiply
            x = self.g["conv"](self.m["conv"](self.conv(x + self.label * self.library - self.init)))
            return self.head(x.mean([2, 3]))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Named().eval()
    x = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    module = build(net, "host", example_inputs=(x,), optimizer=tvm_tinytrain.Adam(), accumulate=True)
    names = [t["name"] for t in module.metadata["tensors"]]
    assert len(set(names)) == len(names)
    with InProcess(module) as device:
        np.testing.assert_allclose(device.predict(x.numpy()), net(x).detach().numpy(), rtol=1e-5, atol=1e-6)
        device.step(x.numpy(), 1, "accumulate")
        torch.nn.functional.cross_entropy(net(x), torch.tensor([1])).backward()
        for name, layer in (("conv", net.conv), ("p_m_conv", net.m["conv"]), ("p_g_conv", net.g["conv"])):
            want = layer.weight.grad.numpy()
            error = np.abs(device.read(f"g_{name}_weight") - want).max()
            assert error <= 1e-5 * np.abs(want).max(), name


class Siamese(nn.Module):
    """One convolution over two images of different heights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 2)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.conv(v).relu().mean((2, 3)) for v in (a, b)], 1))


@pytest.mark.host_compiler
def test_all_inputs_of_a_network_are_bytes() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Siamese().eval()
    rng = np.random.default_rng(0)
    images = {n: rng.integers(0, 256, (1, 3, h, 6)).astype(np.uint8) for n, h in (("a", 5), ("b", 7))}
    floats = {n: (v / 127.5 - 1).astype(np.float32) for n, v in images.items()}
    examples = tuple(torch.from_numpy(v) for v in floats.values())
    trained = []
    for given, dtype in ((floats, "float32"), (images, "uint8")):
        memory = tvm_tinytrain.MemoryOptions(input_dtype=dtype)
        module = build(net, "host", example_inputs=examples, optimizer=SGD(0.1), memory=memory)
        found = {t["name"]: t["dtype"] for t in module.metadata["tensors"] if t["role"] == "input"}
        assert found == {"a": dtype, "b": dtype}
        with InProcess(module) as device:
            for name, image in given.items():
                device.write(name, image)
            device.write("label", np.array([1], np.int32))
            device.call("step")
            trained.append([device.read(n) for n in ("loss", "conv_weight", "head_weight")])
    for got, want in zip(*trained, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
