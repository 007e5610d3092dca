"""The reference of all gradient checks: the network with its batch norms folded, in PyTorch, in float64 and float32.

Both references and our library compute with the same float32 parameters, those that the compiler folded, so that the errors are
those of the gradient's computation alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import tvm
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from tvm_tinytrain.config import MSE, CrossEntropy, Loss
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.state import Layer, get_layers, get_values
from tvm_tinytrain.pipeline import canonicalise
from tvm_tinytrain.plan import UpdatePlan

Array = npt.NDArray[Any]
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
LIMIT = 1e-5
"""Relative error that is always good enough; see `allowed`."""


def relative(got: Array, exact: Array) -> float:
    """‖got − exact‖₂ / ‖exact‖₂."""
    norm = float(np.linalg.norm(exact))
    return float(np.linalg.norm(got.astype(np.float64) - exact)) / max(norm, 1e-30)


def allowed(torch_error: float) -> float:
    """The error that a tensor may have: 1e-5, or three times that of PyTorch's own float32 (ReLU kinks flip in any float32 run)."""
    return max(LIMIT, 3.0 * torch_error)


@dataclass(frozen=True)
class Sample:
    """One input with its label, for a loss: int32 [1] for the cross-entropy, float32 of the output's shape for others."""

    x: npt.NDArray[np.float32]
    label: Array
    loss: Loss

    @staticmethod
    def make(net: nn.Module, shape: Sequence[int], *, regression: bool, seed: int = 0) -> Sample:
        """A normal input; the label is a class, or for a regression the input itself."""
        rng = np.random.default_rng(seed)
        x = rng.normal(size=shape).astype(np.float32)
        if regression:
            return Sample(x, x, MSE())
        with torch.no_grad():
            classes = net(torch.from_numpy(x)).shape[1]
        return Sample(x, rng.integers(classes, size=1).astype(np.int32), CrossEntropy())


class Reference:
    """A network as its compiler sees it, and as PyTorch does.

    ``module`` is the imported network (pass it to `build` with ``params``), ``layers`` its table. ``order``: match layers by their
    place in the order of execution, where an exporter renamed the parameters. ``update``: what is trained, where that adds branches
    to ``model``, as ``net`` has them.
    """

    def __init__(
        self, net: nn.Module, sample: Sample, model: Any = None, *, order: bool = False, update: object = None
    ) -> None:
        x = torch.from_numpy(sample.x)
        self.module: tvm.IRModule = import_model(net if model is None else model, example_inputs=(x,))
        self.sample = sample
        canonical = self.module
        for each in canonicalise(update):
            canonical = each(canonical)
        self.canonical = canonical
        self.layers: tuple[Layer, ...] = get_layers(canonical)
        self.values: dict[str, Array] = get_values(canonical)
        self.net, self.paths = fold_batch_norms(net, x)
        self._owners = self._match(order)
        self._adopt_values()

    @property
    def params(self) -> dict[str, Array]:
        """The imported parameters, for `build`."""
        return dict(get_values(self.module))

    def _match(self, order: bool) -> dict[int, str]:
        """{layer id: path of the PyTorch module}."""
        if order:
            return {layer.id: path for layer, path in zip(self.layers, self.paths, strict=True)}
        by_name = {f"{path}.weight".replace(".", "_"): path for path in self.paths}
        by_name |= {f"v{name}": path for name, path in by_name.items()}
        return {layer.id: by_name[layer.weight] for layer in self.layers}

    def _adopt_values(self) -> None:
        """Gives the PyTorch network the compiler's parameters."""
        for layer in self.layers:
            module = self.net.get_submodule(self._owners[layer.id])
            for own, name in ((module.weight, layer.weight), (module.bias, layer.bias)):
                if own is None or name is None:
                    if (own is None) != (name is None):
                        raise ValueError(f"layer {layer.id} ({layer.weight}): a bias on one side only")
                    continue
                ours = torch.from_numpy(self.values[name].astype(np.float64)).reshape(own.shape)  # type: ignore[arg-type]
                own.data.copy_(ours)  # type: ignore[operator]

    @cached_property
    def exact(self) -> dict[str, Array]:
        """Gradients in float64 by our parameter names, and ``loss``."""
        return self.gradients(torch.float64)

    @cached_property
    def torchs(self) -> dict[str, float]:
        """Relative error of PyTorch's float32 gradients, and of its ``loss``."""
        single = self.gradients(torch.float32)
        return {name: relative(single[name], exact) for name, exact in self.exact.items()}

    def gradients(self, dtype: torch.dtype) -> dict[str, Array]:
        """PyTorch autograd's gradients by our parameter names in our shapes, and ``loss``."""
        net = copy.deepcopy(self.net).to(dtype)
        net.zero_grad()
        loss = self.loss_of(net, dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        found = dict(self.collect(net, lambda p: p.grad))
        return {"loss": loss.detach().numpy().reshape(1), **found}

    def loss_of(self, net: nn.Module, dtype: torch.dtype) -> Tensor:
        """The sample's loss."""
        y, label = net(torch.from_numpy(self.sample.x).to(dtype)), torch.from_numpy(self.sample.label)
        if isinstance(self.sample.loss, CrossEntropy):
            return F.cross_entropy(y, label.long())
        return F.mse_loss(y, label.to(dtype))

    def collect(
        self, net: nn.Module, read: Callable[[nn.Parameter], Tensor | None]
    ) -> Iterator[tuple[str, Array]]:
        """(our name, what ``read`` gives of the parameter, in our shape)."""
        for layer in self.layers:
            module = net.get_submodule(self._owners[layer.id])
            for parameter, name in ((module.weight, layer.weight), (module.bias, layer.bias)):
                if name is not None:
                    value = read(parameter)  # type: ignore[arg-type]
                    assert value is not None, name
                    yield name, value.detach().numpy().reshape(self.values[name].shape)


def planned(
    plan: UpdatePlan, layers: Sequence[Layer], full: Mapping[str, Array], tensors: Sequence[str]
) -> Iterator[tuple[str, str, Array]]:
    """(parameter, its tensor in a library, rows and columns of ``full`` that the plan trains).

    A layer trained in part has compact rows: its tensors are ``<parameter>_rows`` where the weight is split, else the parameter's.
    """
    table, known = {layer.id: layer for layer in layers}, set(tensors)
    for update in plan.layers:
        layer = table[update.layer]
        names = [layer.weight] * update.weight + [layer.bias] * (update.bias and layer.bias is not None)
        for name in names:
            assert name is not None
            chosen = full[name][list(update.outputs)]
            if name == layer.weight and update.inputs is not None:
                chosen = chosen[:, list(update.inputs)]
            yield name, f"{name}_rows" if f"{name}_rows" in known else name, chosen


def fold_batch_norms(net: nn.Module, x: Tensor) -> tuple[nn.Module, list[str]]:
    """A float64 copy in which each batch norm is folded into the layer whose output it reads, and its layers' paths in order."""
    net = copy.deepcopy(net).double().eval()
    outputs: list[tuple[Tensor, str]] = []
    pairs: list[tuple[str, str]] = []

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(module, LAYERS):
                outputs.append((output, name))
            else:
                pairs.extend((source, name) for made, source in outputs if made is inputs[0])

        return hook

    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    watched = [(n, m) for n, m in net.named_modules() if isinstance(m, (*LAYERS, *norms))]
    hooks = [m.register_forward_hook(record(n)) for n, m in watched]
    with torch.no_grad():
        net(x.double())
    for hook in hooks:
        hook.remove()
    for source, norm_path in pairs:
        layer, norm = net.get_submodule(source), net.get_submodule(norm_path)
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        net.set_submodule(source, fuse(layer, norm).requires_grad_())  # type: ignore[type-var, arg-type]
        net.set_submodule(norm_path, nn.Identity())
    return net, list(dict.fromkeys(name for _, name in outputs))
