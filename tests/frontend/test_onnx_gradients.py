"""Networks through ONNX, where exporters write more nodes than PyTorch has operators: gradients against PyTorch in float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operator_cases import PROBE_INPUT, OperatorCase, case, fn, reductions, shapes_and_slices
from benchmarks.operator_layers import masks
from benchmarks.operator_probe import IMAGE, TOKENS, VECTOR
from tests.passes.operator_oracle import compare, lowered
from tvm_tinytrain.passes.state import get_layers

OTHERS = ("indices of a grid", "attention, a token that sees nothing")
"""By ONNX's own evaluator too, the exported file computes something else than PyTorch: other elements, NaN."""
NOT_EXPORTED = ("channel shuffle module", "upsample bilinear, antialiased", "part replaced")


def heads(x: Tensor) -> Tensor:
    """Attention with queries, keys and values picked from one tensor."""
    q, k, v = x.reshape(1, 4, 3, 10).permute(2, 0, 1, 3)
    return (q @ k.transpose(-2, -1)).softmax(-1) @ v


def causal(x: Tensor) -> Tensor:
    """Scores of tokens that follow are left out."""
    mask = torch.ones(5, 5).tril() == 0
    return (x @ x.transpose(-2, -1)).masked_fill(mask, float("-inf")).softmax(-1) @ x


TIED = case(
    "tied autoencoder", fn(lambda x, w: F.linear(torch.tanh(F.linear(x, w)), w.t()), w=(6, 12)), VECTOR
)
TOKENWISE = case("linear layer of tokens", lambda: torch.nn.Linear(8, 5), TOKENS)


@cache
def cases() -> tuple[OperatorCase, ...]:
    own = [
        TIED,
        TOKENWISE,
        case("heads by index", fn(heads), (1, 4, 30)),
        case("causal mask", fn(causal), TOKENS),
        case("flip of two axes", fn(lambda x: x.flip(1, 3)), IMAGE),
        case("smallest of columns", fn(lambda x: x.min(3, keepdim=True).values), IMAGE),
        case("where of a table", fn(lambda x: torch.where(torch.eye(5).bool(), x, x * 0.3)), (1, 5, 5)),
        case(
            "einsum of heads",
            fn(lambda x, y: torch.einsum("bihd,bjhd->bhij", x, y)),
            (1, 3, 2, 4),
            (1, 5, 2, 4),
        ),
        case("einsum that sums", fn(lambda x, y: torch.einsum("bic,djc->dj", x, y)), (1, 3, 4), (2, 5, 4)),
    ]
    exported = [
        c for c in (*masks(), *reductions(), *shapes_and_slices()) if c.name not in (*NOT_EXPORTED, *OTHERS)
    ]
    return (*own, *exported)


@pytest.mark.host_compiler
def test_gradients() -> None:
    errors = compare(cases(), onnx=True)
    assert len(errors) > len(cases())
    assert not {name: error for name, error in errors.items() if not error <= 1e-5}


def test_a_weight_that_is_read_transposed_too_is_one_layer() -> None:
    layers = get_layers(
        lowered(torch.nn.Sequential(torch.nn.Linear(4, 12), TIED.make()), PROBE_INPUT, "mse", onnx=True)
    )
    assert [layer.weight for layer in layers] == ["v0_weight", "v1_w"]


def test_layers_of_tokens_keep_the_names_of_their_weights() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    layers = get_layers(lowered(net, (1, 5, 4), "mse", onnx=True))
    assert [(layer.weight, layer.bias) for layer in layers] == [
        ("v0_weight", "v0_bias"),
        ("v2_weight", "v2_bias"),
    ]
