"""What tests of passes share: kernels for TVMScript, structural comparison, running a module on Relax's virtual machine."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax, tirx

from tests.native import virtual_machine
from tvm_tinytrain.config import CrossEntropy, Loss
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.append_loss import AppendLoss
from tvm_tinytrain.passes.derive_backward import DeriveBackward
from tvm_tinytrain.passes.fold_batch_norm import FoldBatchNorm
from tvm_tinytrain.passes.lower_layers import LowerLayers
from tvm_tinytrain.passes.state import get_values, with_values


class Kernels:
    """Kernels that an expected function calls: ``k = Kernels(conv2d=...)``, in TVMScript ``R.call_tir(k.conv2d, ...)``."""

    def __init__(self, **kernels: tirx.PrimFunc) -> None:
        self._builder = relax.BlockBuilder()
        self._vars = {
            name: self._builder.add_func(func.without_attr("global_symbol"), name)
            for name, func in kernels.items()
        }

    def __getattr__(self, name: str) -> tvm.ir.GlobalVar:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._vars[name]

    def module(self, **functions: relax.Function) -> tvm.IRModule:
        """The kernels with these Relax functions."""
        mod = self._builder.get()
        table = {gv: mod[gv] for gv in self._vars.values()}
        for name, func in functions.items():
            table[tvm.ir.GlobalVar(name)] = func.with_attr("global_symbol", name)
        return tvm.IRModule(table)


def assert_same(actual: tvm.IRModule, expected: tvm.IRModule) -> None:
    """Structural equality of functions and kernels; names of variables and attributes of the module do not count."""
    relax.analysis.well_formed(actual)  # raises ValueError
    tvm.ir.assert_structural_equal(_plain(actual), _plain(expected), map_free_vars=True)


def _plain(mod: tvm.IRModule) -> tvm.IRModule:
    return relax.transform.CanonicalizeBindings()(tvm.IRModule(dict(mod.functions.items())))


def with_zeros(mod: tvm.IRModule, function: str = "main") -> tvm.IRModule:
    """The module with zeros as the values of its parameters."""
    func = mod[function]
    inputs = int(func.attrs["num_input"])
    zeros = {p.name: np.zeros([int(d) for d in p.ty.shape], str(p.ty.dtype)) for p in func.params[inputs:]}
    return with_values(mod, zeros)


class Machine:
    """A module on Relax's virtual machine: ``run`` passes tensors by the names of the function's parameters.

    ``tensors`` are the parameters' values; what an entry updates in place is changed there.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        self.mod = mod
        self.tensors = {k: tvm.runtime.tensor(v) for k, v in get_values(mod).items()}
        self._vm = virtual_machine(mod)

    def run(self, entry: str, *inputs: Any) -> list[np.ndarray]:
        """Runs ``entry`` on ``inputs``, followed by the parameters; returns its results."""
        given = [tvm.runtime.tensor(np.ascontiguousarray(i)) for i in inputs]
        rest = [self.tensors[p.name] for p in self.mod[entry].params[len(given) :]]
        out = self._vm[entry](*given, *rest)
        return [out.numpy()] if isinstance(out, tvm.runtime.Tensor) else [o.numpy() for o in out]

    def value(self, name: str) -> np.ndarray:
        """The current value of a parameter."""
        return self.tensors[name].numpy()


def lowered(net: torch.nn.Module, x: torch.Tensor) -> tvm.IRModule:
    """The network up to its layers: function ``predict``."""
    return LowerLayers()(FoldBatchNorm()(import_model(net, example_inputs=(x,))))


def derived(net: torch.nn.Module, x: torch.Tensor, loss: Loss | None = None) -> tvm.IRModule:
    """The network with the whole backward graph: functions ``predict`` and ``step``."""
    return DeriveBackward()(AppendLoss(loss or CrossEntropy())(lowered(net, x)))


def label(value: int) -> np.ndarray:
    """A class as the label's tensor."""
    return np.array([value], dtype=np.int32)


def torch_gradients(
    net: torch.nn.Module, x: torch.Tensor, target: int | torch.Tensor, loss: Any = None
) -> dict[str, np.ndarray]:
    """PyTorch's gradients in float64 by parameter name with ``_`` for ``.``; cross-entropy where no loss is given."""
    exact = _double(net)
    output = exact(x.double())
    if loss is None:
        value = torch.nn.functional.cross_entropy(output, torch.tensor([target]))
    else:
        value = loss(output, target)
    value.backward()
    found = {name.replace(".", "_"): p.grad for name, p in exact.named_parameters()}
    return {name: grad.numpy() for name, grad in found.items() if grad is not None}


def _double(net: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(net).double().eval()


def assert_close(
    actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float
) -> None:
    """Every expected tensor is there, and its largest error is at most ``tolerance`` of its largest value."""
    assert set(expected) <= set(actual), sorted(set(expected) - set(actual))
    for name, want in expected.items():
        error = np.abs(actual[name].reshape(want.shape) - want).max()
        assert error <= tolerance * max(np.abs(want).max(), 1e-3), f"{name}: error {error}"


def folded(net: torch.nn.Module) -> torch.nn.Module:
    """A copy whose convolutions have taken in the batch norm behind them, as FoldBatchNorm does it: names stay."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    net = copy.deepcopy(net).eval()
    for parent in list(net.modules()):
        children = list(parent.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if isinstance(conv, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, torch.nn.Identity())
    return net.requires_grad_(True)


def gradient_names(mod: tvm.IRModule) -> Sequence[str]:
    """The parameters whose gradients ``step`` returns, in order."""
    described = json.loads(str(mod["step"].attrs["tt.gradients"]))
    return [d if isinstance(d, str) else d["param"] for d in described]
