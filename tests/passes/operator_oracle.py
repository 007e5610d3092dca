"""Gradients of an operator case by our passes, run on TVM's Relax VM, and by PyTorch autograd in float64."""

from __future__ import annotations

import copy
import functools
import io
import json
import warnings
from collections.abc import Collection

import numpy as np
import onnx as onnx_format
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from tvm import relax

from benchmarks.operator_cases import PROBE_INPUT, OperatorCase, probe
from tests.native import virtual_machine
from tvm_tinytrain.config import MSE, BinaryCrossEntropy, CrossEntropy, Loss
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.append_loss import AppendLoss
from tvm_tinytrain.passes.canonicalize import Canonicalize
from tvm_tinytrain.passes.derive_backward import GRADIENTS, DeriveBackward
from tvm_tinytrain.passes.fold_batch_norm import FoldBatchNorm
from tvm_tinytrain.passes.lower_layers import LowerLayers
from tvm_tinytrain.passes.state import get_values

Arrays = dict[str, np.ndarray]
LOSSES: dict[str, Loss] = {"mse": MSE(), "cross_entropy": CrossEntropy(), "bce": BinaryCrossEntropy()}


def lowered(net: nn.Module, input_shape: tuple[int, ...], loss: str, onnx: bool = False) -> tvm.IRModule:
    """The module up to ``step`` without a backward pass, imported from the module itself or through ONNX."""
    if onnx:
        mod = import_model(export_onnx(net, input_shape))
    else:
        mod = import_model(net, example_inputs=(torch.zeros(input_shape),))
    for each in (Canonicalize(), FoldBatchNorm(), LowerLayers(), AppendLoss(LOSSES[loss])):
        mod = each(mod)
        relax.analysis.well_formed(mod)  # raises ValueError
    return mod


def export_onnx(net: nn.Module, input_shape: tuple[int, ...], opset: int = 17) -> onnx_format.ModelProto:
    """The network as PyTorch's exporter writes it where it folds nothing."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(input_shape),), buffer, dynamo=False, opset_version=opset, do_constant_folding=False
        )  # fmt: skip
    return onnx_format.load_from_string(buffer.getvalue())


def derive(mod: tvm.IRModule, wanted: Collection[str]) -> tvm.IRModule:
    """The module with ``step`` differentiated with respect to ``wanted``."""
    mod = DeriveBackward(wanted)(mod)
    relax.analysis.well_formed(mod)  # raises ValueError
    return mod


def run(mod: tvm.IRModule, x: np.ndarray, label: np.ndarray) -> tuple[float, Arrays]:
    """Loss and gradients by parameter name, on the Relax VM."""
    step = mod["step"]
    values = get_values(mod)
    args = [tvm.runtime.tensor(a) for a in (x, label, *(values[p.name] for p in step.params[2:]))]
    loss, *grads = virtual_machine(mod)["step"](*args)
    names = json.loads(str(step.attrs[GRADIENTS]))
    return float(loss.numpy()[0]), {n: g.numpy() for n, g in zip(names, grads, strict=True)}


def run_kernel(kernel: tvm.tirx.PrimFunc, *inputs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 output of ``shape`` of one kernel that has its inputs first."""
    out = tvm.runtime.tensor(np.zeros(shape, np.float32))
    tvm.compile(kernel, "llvm")(*map(tvm.runtime.tensor, inputs), out)
    return out.numpy()


def fused(net: nn.Module) -> nn.Module:
    """A copy in float64 with each batch norm folded into the layer before it in its nn.Sequential, as FoldBatchNorm does."""
    net = copy.deepcopy(net).double().eval()
    for parent in list(net.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        for i in range(len(parent) - 1):
            layer, norm = parent[i], parent[i + 1]
            if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                continue
            if isinstance(layer, nn.Linear):
                parent[i], parent[i + 1] = fuse_linear_bn_eval(layer, norm).requires_grad_(), nn.Identity()
            elif isinstance(layer, nn.Conv1d | nn.Conv2d):
                parent[i], parent[i + 1] = fuse_conv_bn_eval(layer, norm).requires_grad_(), nn.Identity()
    return net


def reference(net: nn.Module, x: Tensor, label: Tensor, loss: str) -> tuple[float, Arrays]:
    """Loss and gradients of PyTorch in float64, in our layouts and under our names."""
    out = net(x.double())
    if loss == "cross_entropy":
        value = F.cross_entropy(out, label.long())
    elif loss == "bce":
        value = F.binary_cross_entropy_with_logits(out, label.double())
    else:
        value = F.mse_loss(out, label.double())
    value.backward()
    grads: Arrays = {}
    for path, module in net.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            assert parameter.grad is not None, name
            full = f"{path}.{name}" if path else name
            grads[full.replace(".", "_")] = _in_our_layout(module, name, parameter.grad.numpy())
    return value.item(), grads


def _in_our_layout(module: nn.Module, name: str, grad: np.ndarray) -> np.ndarray:
    if name != "weight" or not isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.ConvTranspose2d):
        return grad
    grad = grad[:, :, None, :] if grad.ndim == 3 else grad
    if isinstance(module, nn.Conv1d):
        return grad
    grouped = grad.reshape(module.groups, -1, *grad.shape[1:]).swapaxes(1, 2)
    return grouped.reshape(module.out_channels, -1, *grad.shape[2:])


class Bundle(nn.Module):
    """Several networks on one input, their outputs side by side: one compilation instead of many."""

    def __init__(self, nets: list[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([net(x).reshape(1, -1) for net in self.nets], 1)


@functools.cache
def bundled(
    cases: tuple[OperatorCase, ...], seed: int = 0, onnx: bool = False
) -> tuple[nn.Module, tvm.IRModule]:
    """The cases as one network, and that network up to ``step``. With any loss but the mean squared error: one case."""
    loss = cases[0].loss
    net = Bundle([probe(c, seed) for c in cases]) if loss == "mse" else probe(*cases, seed)
    return net, lowered(net, PROBE_INPUT, loss, onnx)


def compare(cases: tuple[OperatorCase, ...], seed: int = 0, onnx: bool = False) -> dict[str, float]:
    """‖Δ‖₂ / ‖g‖₂ per trained parameter as ``case: parameter``, and under ``loss`` the loss's relative error."""
    net, mod = bundled(cases, seed, onnx)
    loss_name = cases[0].loss
    exact = fused(net)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=PROBE_INPUT).astype(np.float32)
    with torch.no_grad():
        shape = tuple(exact(torch.from_numpy(x).double()).shape)
    label = {
        "mse": lambda: rng.normal(size=shape).astype(np.float32),
        "bce": lambda: rng.uniform(size=shape).astype(np.float32),
        "cross_entropy": lambda: rng.integers(shape[1], size=1).astype(np.int32),
    }[loss_name]()
    loss, expected = reference(exact, torch.from_numpy(x), torch.from_numpy(label), loss_name)
    got_loss, got = run(derive(mod, list(expected)), x, label)
    assert set(got) == set(expected), sorted(set(got) ^ set(expected))
    errors = {"loss": abs(got_loss - loss) / abs(loss)}
    for name, grad in expected.items():
        index = int(name.split("_")[1]) if loss_name == "mse" else 0
        title = f"{cases[index].name}: {name}"
        ours = got[name]
        if ours.shape != grad.shape and ours.shape == grad.T.shape:  # x @ weight: kept as [out, in]
            grad = grad.T
        assert ours.shape == grad.shape, title
        errors[title] = float(np.linalg.norm(ours - grad) / max(float(np.linalg.norm(grad)), 1e-30))
    return errors
