"""SplitWeights: rows that differ from the weight in flash act as if they stood in it, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import tvm
from torch import Tensor, nn
from torch.nn import functional as F

from tests.passes.helpers import Machine, assert_close, derived, gradient_names, label, torch_gradients
from tests.passes.networks import sample, seeded
from tvm_tinytrain.passes.prune_backward import PruneBackward
from tvm_tinytrain.passes.split_weights import SplitWeights
from tvm_tinytrain.passes.state import get_layers
from tvm_tinytrain.plan import LayerUpdate, UpdatePlan


def between(layer: Callable[[], nn.Module], clamp: Callable[[Tensor], Tensor]) -> type:
    """A network with `layer` from 4 to 6 channels (depthwise: 4) behind another one, so that its dx matters."""

    class Between(nn.Module):
        shape = (2, 6, 5)

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 4, 3, padding=1)
            self.layer = layer()
            self.head = nn.Linear(self.layer.weight.shape[0], 3)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            y = clamp(self.layer(y if isinstance(self.layer, nn.Conv2d) else y.mean([2, 3])))
            return self.head(y.mean([2, 3]) if y.ndim == 4 else y)

    return Between


LAYERS = {
    "dense": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
    "pointwise": lambda: nn.Conv2d(4, 6, 1),
    "pointwise strided": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "depthwise strided": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
    "linear": lambda: nn.Linear(4, 6),
}


@pytest.mark.parametrize("train_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_moved_rows(name: str, train_bias: bool) -> None:
    make = between(LAYERS[name], F.relu6 if train_bias else nn.Identity())
    net, x = seeded(make), sample(*make.shape)
    mod = derived(net, x)
    channels = (0, 2, 3)
    first, layer, _ = get_layers(mod)
    bias = train_bias and layer.bias is not None
    plan = UpdatePlan((LayerUpdate(first.id, tuple(range(4))), LayerUpdate(layer.id, channels, bias=bias)))
    split = SplitWeights()(PruneBackward(plan)(mod))
    machine = Machine(split)
    rng = np.random.default_rng(3)
    for parameter in ("weight", "bias") if bias else ("weight",):
        rows = rng.normal(size=machine.value(f"layer_{parameter}_rows").shape).astype(np.float32)
        machine.tensors[f"layer_{parameter}_rows"] = tvm.runtime.tensor(rows)
        with torch.no_grad():
            getattr(net.layer, parameter)[list(channels)] = torch.from_numpy(rows)
    expected = net.double()(x.double()).detach().numpy()
    assert_close({"y": machine.run("predict", x.numpy())[0]}, {"y": expected}, 2e-6)
    _, *grads = machine.run("step", x.numpy(), label(1))
    found = dict(zip(gradient_names(split), grads, strict=True))
    want = torch_gradients(net, x, 1)
    wanted = {"first_weight": want["first_weight"], "first_bias": want["first_bias"]}
    wanted["layer_weight_rows"] = want["layer_weight"][list(channels)]
    if bias:
        wanted["layer_bias_rows"] = want["layer_bias"][list(channels)]
    assert set(found) == set(wanted)
    assert_close(found, wanted, 1e-5)
