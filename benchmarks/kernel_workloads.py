"""The kernels that the three backbones consist of: each distinct layer forward, its input's gradient, its weight's update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import tvm
from tvm import tirx

from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.models import mcunet, mobilenet_v2, proxyless_nas
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv2d import conv2d
from tvm_tinytrain.passes.kernels.conv2d_grad import conv2d_input_grad, conv2d_weight_grad
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.linear import LinearSpec, linear, linear_input_grad, linear_weight_grad
from tvm_tinytrain.passes.kernels.sinks import SGDUpdate
from tvm_tinytrain.pipeline import canonicalise

NETWORKS = {"mcunet": mcunet, "mobilenet_v2": mobilenet_v2, "proxyless_nas": proxyless_nas}
DIRECTIONS = ("forward", "dX", "dW")
SPARSITY = 2
"""Of the output channels one in so many is trained in the dW kernels."""


@dataclass(frozen=True)
class Workload:
    """One kernel; ``group`` is "pointwise" (1×1 and linear), "depthwise" or "dense", ``direction`` one of `DIRECTIONS`."""

    name: str
    group: str
    direction: str
    kernel: tirx.PrimFunc

    @property
    def macs(self) -> int:
        """Multiply-accumulates, taps in the padding included."""
        return int(kernel_spec(self.kernel)["macs"])


def layers(network: str, size: int = 128, classes: int = 10) -> list[tirx.PrimFunc]:
    """The layer kernels of a backbone for images of ``size`` × ``size``, in order of their names; equal ones occur once."""
    model = NETWORKS[network](num_classes=classes, fused=True).eval()
    mod = import_model(model, example_inputs=(torch.zeros(1, 3, size, size),))
    mod = tvm.ir.transform.Sequential(canonicalise())(mod)
    found = {gv.name_hint: f for gv, f in mod.functions.items() if kernel_kind(f) in ("conv2d", "linear")}
    return [found[name] for name in sorted(found)]


def workloads(networks: list[str] | tuple[str, ...] = tuple(NETWORKS)) -> list[Workload]:
    """All distinct kernels of the networks, sorted by group, direction and size."""
    found: dict[str, Workload] = {}
    for network in networks:
        for layer in layers(network):
            for work in _of_layer(layer):
                found.setdefault(work.name, work)
    return sorted(found.values(), key=lambda w: (w.group, DIRECTIONS.index(w.direction), w.macs, w.name))


def _of_layer(layer: tirx.PrimFunc) -> Iterator[Workload]:
    described = kernel_spec(layer)
    options = {k: described[k] for k in ("bias", "low", "high")}
    if kernel_kind(layer) == "linear":
        line = LinearSpec.from_dict(described)
        name = f"linear_{line.in_features}_{line.out_features}"
        yield Workload(f"{name}_forward", "pointwise", "forward", linear(line, **options))
        yield Workload(f"{name}_dX", "pointwise", "dX", linear_input_grad(line))
        yield Workload(f"{name}_dW", "pointwise", "dW", linear_weight_grad(line, SGDUpdate()))
        return
    spec = Conv2DSpec.from_dict(described)
    group = "pointwise" if spec.kernel == (1, 1) else "depthwise" if spec.depthwise else "dense"
    name = f"{group}_{spec.in_channels}_{spec.out_channels}_{spec.height}x{spec.width}"
    if group != "pointwise":
        name += f"_k{spec.kernel[0]}_s{spec.stride[0]}"
    clamp = "" if options["high"] is None else "_clamped"
    chosen = max(1, spec.out_channels // SPARSITY)
    yield Workload(f"{name}{clamp}_forward", group, "forward", conv2d(spec, **options))
    yield Workload(f"{name}_dX", group, "dX", conv2d_input_grad(spec))
    yield Workload(f"{name}_dW", group, "dW", conv2d_weight_grad(spec, SGDUpdate(), channels=chosen))
