"""Operators of PyTorch that TVM's front end takes for others, constants in float64, random numbers, training mode."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.frontend.running import Batch, run
from tvm_tinytrain.errors import DTypeError, UnsupportedOperatorError
from tvm_tinytrain.frontend import import_model

IMAGE = (1, 3, 6, 5)
Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def sample(mode: str, padding: str, corners: bool) -> Function:
    """At places some of which lie outside."""
    grid = torch.stack(
        torch.meshgrid(torch.linspace(-1.7, 1.4, 7), torch.linspace(-0.8, 1.1, 6), indexing="ij"), -1
    )
    return lambda x: F.grid_sample(x, grid[None], mode, padding, corners)


TABLE = torch.linspace(0, 1, 5, dtype=torch.float64)
FUNCTIONS: dict[str, Function] = {
    **{
        f"grid {mode} {padding} {corners}": sample(mode, padding, corners)
        for mode, padding, corners in product(
            ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (False, True)
        )
    },
    "table of doubles": lambda x: x * TABLE.float(),
    "computed in doubles": lambda x: ((x.double() - TABLE) / 2).float(),
    "promoted to doubles": lambda x: ((x - TABLE) / 2).float(),
    "a double": lambda x: x * torch.tensor(1.5, dtype=torch.float64),
    "integers times a number": lambda x: x * (torch.arange(5) * 0.5),
    "a number minus integers": lambda x: x * (0.5 - torch.arange(5)),
    "integers by integers": lambda x: x * (torch.arange(5) / torch.arange(2, 7)),
    "power of integers": lambda x: x * 2.0 ** torch.arange(5),
    "sine of integers": lambda x: x * torch.sin(torch.arange(5)),
    "integers over a number": lambda x: x * (torch.arange(5) > 2.5),
    "truth times an integer": lambda x: x * ((x > 0) * 2),
    "integers chosen": lambda x: torch.where(x > 0, 1, 0) * 0.5 * x,
    "place of the largest": lambda x: x * (x.argmax(1, keepdim=True) * 0.3),
    "rounded to integers": lambda x: x + (x.int() + 0.5),
    "integers beside numbers": lambda x: x * torch.cat([torch.arange(2), torch.tensor([0.1, 0.2, 0.3])]),
    "integers by halves": lambda x: x * (torch.arange(5) // 2),
    "by a number, rounded down": lambda x: x * 3 // 0.7,
    "by a number, cut off": lambda x: torch.div(x * 3, 0.7, rounding_mode="trunc"),
    "softmax in doubles": lambda x: F.softmax(x, -1, dtype=torch.float64).float(),
}  # fmt: skip


@pytest.fixture(scope="module")
def batch() -> Batch:
    def load(function: Function) -> Callable[[], object]:
        return lambda: import_model(Net(function), example_inputs=(torch.zeros(IMAGE),))

    return Batch({name: load(function) for name, function in FUNCTIONS.items()})  # type: ignore[misc]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operator_equals_pytorch(batch: Batch, name: str) -> None:
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))
    got, expected = torch.from_numpy(batch.run(name, x)), FUNCTIONS[name](x)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_tensor_of_doubles_is_refused() -> None:
    net = Net(lambda x: (x * torch.ones(5, dtype=torch.float64)).float())
    with pytest.raises(DTypeError, match=r"relax.\w+ at .*: found float64; allowed float32"):
        import_model(net, example_inputs=(torch.zeros(IMAGE),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_half_the_width_are_refused(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(
        DTypeError, match=f"frontend: relax.astype at .*: found {name}; allowed float32; let the"
    ):
        import_model(Net(lambda x: x.to(dtype).relu().float()), example_inputs=(torch.zeros(IMAGE),))


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        noise = torch.randn_like(x)
    return x + noise


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x + torch.randn_like(x), r"aten.randn_like.default \(randn_like\): found random numbers"),
        (lambda x: x + torch.rand(5), "found random numbers"),
        (lambda x: torch.bernoulli(x.sigmoid()), "found random numbers"),
        (without_gradient, "found random numbers"),
        (F.gumbel_softmax, "found random numbers"),
        (lambda x: F.dropout(x, 0.5), r"aten.dropout.default \(dropout\): found training mode; .* model.eval"),
        (lambda x: F.rrelu(x, training=True), "found training mode"),
        (lambda x: F.batch_norm(x, x.new_zeros(3), x.new_ones(3), training=True), "found the batch's statistics"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "found random numbers"),
    ],
)  # fmt: skip
def test_random_numbers_are_refused(function: Function, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        import_model(Net(function), example_inputs=(torch.zeros(IMAGE),))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.dropout(x, 0.0),
        lambda x: F.dropout(x, training=False),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: F.instance_norm(x),
        lambda x: x + 0 * x + (torch.randn_like(x), x)[1],  # drawn for nothing
    ],
)
def test_what_only_looks_random_is_taken(function: Function) -> None:
    import_model(Net(function), example_inputs=(torch.zeros(IMAGE),))


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (nn.InstanceNorm2d(3, track_running_stats=True), "the batch's statistics"),
        (nn.Dropout2d(), "training mode"),
        (nn.AlphaDropout(), "training mode"),
    ],
)
def test_layers_in_training_mode_that_are_refused(layer: nn.Module, found: str) -> None:
    """Others than dropout and batch norm, of which a program in training mode is compiled as one in evaluation mode."""
    x = (torch.zeros(IMAGE),)
    with pytest.raises(UnsupportedOperatorError) as info:
        import_model(torch.export.export(nn.Sequential(layer).train(), x))
    assert info.value.found == found
    import_model(nn.Sequential(layer).train(), example_inputs=x)  # exported here, in evaluation mode


def test_attention_in_training_mode_is_evaluated() -> None:
    layer, x = nn.TransformerEncoderLayer(6, 2, 8, 0.4, batch_first=True), torch.ones(1, 3, 6)
    got = run(import_model(torch.export.export(layer.train(), (x,))), x)
    np.testing.assert_allclose(got, layer.eval()(x).detach().numpy(), rtol=1e-5, atol=1e-5)
