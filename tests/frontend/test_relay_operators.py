"""Each Relay operator against PyTorch. All cases are built at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.frontend.running import Batch
from tvm_tinytrain.frontend.relay_text import from_relay_text, supported_operators

IMAGE = (1, 4, 9, 8)


class Case(NamedTuple):
    """A body over ``%x`` of ``shape`` and the parameters ``params``; ``expected`` gets all of them by name."""

    body: str
    expected: Callable[..., Tensor]
    shape: tuple[int, ...] = IMAGE
    params: dict[str, tuple[int, ...]] = {}


W, B = {"w": (6, 4, 3, 3)}, {"b": (4,)}
NORM = {"g": (4,), "b": (4,), "m": (4,), "v": (4,)}
CASES = {
    "conv2d": Case(
        "nn.conv2d(%x, %w, padding=[1, 2, 0, 1], strides=[2, 1], channels=6, kernel_size=[3, 3])",
        lambda x, w: F.conv2d(F.pad(x, (2, 1, 1, 0)), w, stride=(2, 1)), params=W,
    ),
    "conv2d one padding, dilated": Case(
        "nn.conv2d(%x, %w, padding=[2], dilation=[2, 1])",
        lambda x, w: F.conv2d(x, w, padding=2, dilation=(2, 1)), params=W,
    ),
    "conv2d depthwise": Case(
        'nn.conv2d(%x, %w, padding=[1, 1, 1, 1], groups=4, data_layout="NCHW", kernel_layout="OIHW", out_dtype="float32")',
        lambda x, w: F.conv2d(x, w, padding=1, groups=4), params={"w": (4, 1, 3, 3)},
    ),
    "conv1d": Case(
        "nn.conv1d(%x, %w, padding=[2, 2], strides=[2], kernel_size=[5])",
        lambda x, w: F.conv1d(x, w, stride=2, padding=2), (1, 4, 20), {"w": (3, 4, 5)},
    ),
    "conv2d_transpose": Case(
        "nn.conv2d_transpose(%x, %w, strides=[2, 2], padding=[1, 1, 1, 1], output_padding=[1, 1], channels=5)",
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1), params={"w": (4, 5, 3, 3)},
    ),
    "dense": Case("nn.dense(%x, %w, units=7)", lambda x, w: x @ w.T, (1, 5), {"w": (7, 5)}),
    "matmul": Case("nn.matmul(%x, %w, transpose_b=True)", lambda x, w: x @ w.T, (1, 5), {"w": (7, 5)}),
    "batch_matmul": Case(
        "nn.batch_matmul(%x, %w, transpose_b=True)", lambda x, w: x @ w.mT, (2, 3, 5), {"w": (2, 4, 5)}
    ),
    "bias_add": Case("nn.bias_add(%x, %b)", lambda x, b: x + b[:, None, None], params=B),
    "bias_add last": Case("nn.bias_add(%x, %b, axis=-1)", lambda x, b: x + b, params={"b": (8,)}),
    "relu": Case("nn.relu(%x)", F.relu),
    "clip": Case("clip(%x, a_min=-0.5f, a_max=6f)", lambda x: x.clamp(-0.5, 6)),
    "clip int": Case("clip(%x, a_min=0, a_max=1)", lambda x: x.clamp(0, 1)),
    "clip crossed": Case("clip(%x, a_min=0.5f, a_max=-0.5f)", lambda x: x.clamp(0.5, -0.5)),
    "leaky_relu": Case("nn.leaky_relu(%x, alpha=0.1f)", lambda x: F.leaky_relu(x, 0.1)),
    "leaky_relu default": Case("nn.leaky_relu(%x)", lambda x: F.leaky_relu(x, 0.25)),
    "prelu": Case("nn.prelu(%x, %b)", F.prelu, params=B),
    "batch_norm": Case(
        "%0 = nn.batch_norm(%x, %g, %b, %m, %v, epsilon=0.001f); %0.0",
        lambda x, g, b, m, v: F.batch_norm(x, m, v, g, b, eps=1e-3), params=NORM,
    ),
    "batch_norm vector": Case(
        "%0 = nn.batch_norm(%x, %g, %b, %m, %v); %0.0",
        lambda x, g, b, m, v: F.batch_norm(x, m, v, g, b), (1, 4), NORM,
    ),
    "layer_norm": Case(
        "nn.layer_norm(%x, %g, %b)", lambda x, g, b: F.layer_norm(x, (8,), g, b), params={"g": (8,), "b": (8,)}
    ),
    "group_norm": Case(
        "nn.group_norm(%x, %g, %b, num_groups=2)",
        lambda x, g, b: F.group_norm(x, 2, g, b), params={"g": (4,), "b": (4,)},
    ),
    "instance_norm": Case(
        "nn.instance_norm(%x, %g, %b)",
        lambda x, g, b: F.instance_norm(x, weight=g, bias=b), params={"g": (4,), "b": (4,)},
    ),
    "max_pool2d": Case(
        "nn.max_pool2d(%x, pool_size=[3, 2], strides=[2, 2], padding=[1, 1, 1, 1])",
        lambda x: F.max_pool2d(x, (3, 2), 2, 1),
    ),
    "max_pool2d ceil": Case(
        "nn.max_pool2d(%x, pool_size=[2, 2], strides=[2, 2], ceil_mode=True)",
        lambda x: F.max_pool2d(x, 2, ceil_mode=True),
    ),
    "avg_pool2d": Case(
        "nn.avg_pool2d(%x, pool_size=[3, 3], padding=[1, 1, 1, 1])",
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    "avg_pool2d padded": Case(
        "nn.avg_pool2d(%x, pool_size=[3, 3], padding=[1, 1], count_include_pad=True)",
        lambda x: F.avg_pool2d(x, 3, 1, 1),
    ),
    "max_pool1d": Case(
        "nn.max_pool1d(%x, pool_size=[3], strides=[2], padding=[1])",
        lambda x: F.max_pool1d(x, 3, 2, 1), (1, 4, 20),
    ),
    "avg_pool1d": Case(
        "nn.avg_pool1d(%x, pool_size=[4], strides=[4])", lambda x: F.avg_pool1d(x, 4), (1, 4, 20)
    ),
    "global_avg_pool2d": Case("nn.global_avg_pool2d(%x)", lambda x: x.mean((2, 3), keepdim=True)),
    "global_max_pool2d": Case("nn.global_max_pool2d(%x)", lambda x: x.amax((2, 3), keepdim=True)),
    "adaptive_avg_pool2d": Case(
        "nn.adaptive_avg_pool2d(%x, output_size=[3, 2])", lambda x: F.adaptive_avg_pool2d(x, (3, 2))
    ),
    "adaptive_avg_pool2d one": Case(
        "nn.adaptive_avg_pool2d(%x, output_size=[1])", lambda x: x.mean((2, 3), keepdim=True)
    ),
    "adaptive_avg_pool1d": Case(
        "nn.adaptive_avg_pool1d(%x, output_size=[5])", lambda x: F.adaptive_avg_pool1d(x, 5), (1, 4, 20)
    ),
    "adaptive_max_pool2d": Case(
        "nn.adaptive_max_pool2d(%x, output_size=[1, 1])", lambda x: x.amax((2, 3), keepdim=True)
    ),
    "mean": Case("mean(%x, axis=[2, 3])", lambda x: x.mean((2, 3))),
    "mean exclude": Case("mean(%x, axis=1, keepdims=True, exclude=True)", lambda x: x.mean((0, 2, 3), keepdim=True)),
    "sum": Case("sum(%x, axis=[-1], keepdims=1)", lambda x: x.sum(-1, keepdim=True)),
    "sum of no axes": Case("sum(%x, axis=[])", lambda x: x.sum()),
    "sum of all, exclude": Case("sum(%x, exclude=True)", lambda x: x.sum()),
    "max all": Case("max(%x)", lambda x: x.amax()),
    "min": Case("min(%x, axis=[1])", lambda x: x.amin(1)),
    "prod": Case("prod(%x, axis=[3])", lambda x: x.prod(3)),
    "variance": Case(
        "%0 = mean(%x, axis=[3], keepdims=True); variance(%x, %0, axis=[3], keepdims=True, unbiased=True)",
        lambda x: x.var(3, keepdim=True),
    ),
    "pad": Case(
        "nn.pad(%x, 1.5f, pad_width=[[0, 0], [0, 0], [1, 2], [3, 0]])",
        lambda x: F.pad(x, (3, 0, 1, 2), value=1.5),
    ),
    "pad before 0.8": Case(
        "nn.pad(%x, pad_value=2f, pad_width=[[0, 0], [1, 0], [0, 0], [0, 0]])",
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 0), value=2),
    ),
    "pad edge": Case(
        'nn.pad(%x, 0f, pad_width=[[0, 0], [0, 0], [1, 1], [2, 2]], pad_mode="edge")',
        lambda x: F.pad(x, (2, 2, 1, 1), mode="replicate"),
    ),
    "pad reflect": Case(
        'nn.pad(%x, 0f, pad_width=[[0, 0], [0, 0], [1, 1], [2, 2]], pad_mode="reflect")',
        lambda x: F.pad(x, (2, 2, 1, 1), mode="reflect"),
    ),
    "concatenate": Case("%0 = (%x, nn.relu(%x)); concatenate(%0, axis=1)", lambda x: torch.cat((x, x.relu()), 1)),
    "stack": Case("stack((%x, %x), axis=-1)", lambda x: torch.stack((x, x), -1)),
    "split": Case("%0 = split(%x, indices_or_sections=2, axis=1); %0.1", lambda x: x[:, 2:]),
    "split at": Case(
        "%0 = split(%x, indices_or_sections=[1, 4], axis=3); concatenate(%0, axis=3)", lambda x: x
    ),
    "strided_slice": Case(
        "strided_slice(%x, begin=[0, 1, 0, -3], end=[1, 4, 9, 2147483647], strides=[1, 2], axes=None)",
        lambda x: x[:, 1:4:2, :, -3:],
    ),
    "strided_slice axes": Case("strided_slice(%x, begin=[2], end=[5], strides=[1], axes=[2])", lambda x: x[:, :, 2:5]),
    "strided_slice size": Case(
        'strided_slice(%x, begin=[0, 1, 2], end=[1, -1, 3], strides=[1], slice_mode="size")',
        lambda x: x[:, 1:, 2:5],
    ),
    "reshape": Case("reshape(%x, newshape=[0, -1, 8])", lambda x: x.reshape(1, 36, 8)),
    "reshape special": Case(
        "reshape(reshape(%x, newshape=[0, -4, 2, -1, -2]), newshape=[-3, 0, -3])",
        lambda x: x.reshape(1, 2, 2, 9, 8).reshape(2, 2, 72),
    ),
    "batch_flatten": Case("nn.batch_flatten(%x)", lambda x: x.flatten(1)),
    "squeeze": Case("squeeze(%x, axis=[0])", lambda x: x[0]),
    "expand_dims": Case("expand_dims(%x, axis=-1, num_newaxis=2)", lambda x: x[..., None, None]),
    "transpose": Case("transpose(%x, axes=[0, -1, 1, 2])", lambda x: x.permute(0, 3, 1, 2)),
    "transpose reverse": Case("transpose(%x)", lambda x: x.permute(3, 2, 1, 0)),
    "channel shuffle": Case(
        "%0 = reshape(%x, newshape=[1, 2, 2, 9, 8]);\n%1 = transpose(%0, axes=[0, 2, 1, 3, 4]);\n"
        "reshape(%1, newshape=[1, 4, 9, 8])",
        lambda x: F.channel_shuffle(x, 2),
    ),
    "upsampling": Case(
        "nn.upsampling(%x, scale_h=2f, scale_w=3f)", lambda x: F.interpolate(x, scale_factor=(2, 3))
    ),
    "resize2d": Case(
        'image.resize2d(%x, size=[18, 16], roi=[0f, 0f, 0f, 0f], method="nearest_neighbor", '
        'coordinate_transformation_mode="asymmetric", rounding_method="")',
        lambda x: F.interpolate(x, (18, 16)),
    ),
    "resize2d linear": Case(
        "image.resize2d(%x, size=[18, 16])", lambda x: F.interpolate(x, (18, 16), mode="bilinear")
    ),
    "broadcasting": Case("add(multiply(%x, %b), 1f)", lambda x, b: x * b + 1, params={"b": (4, 1, 1)}),
    "subtract, divide": Case("divide(subtract(%x, 2f), 3f)", lambda x: (x - 2) / 3),
    "maximum, minimum": Case("minimum(maximum(%x, 0f), 0.5f)", lambda x: x.clamp(0, 0.5)),
    "power": Case("power(abs(%x), 1.5f)", lambda x: x.abs() ** 1.5),
    "unary": Case(
        "add(add(sigmoid(%x), tanh(%x)), add(exp(negative(%x)), erf(%x)))",
        lambda x: x.sigmoid() + x.tanh() + (-x).exp() + x.erf(),
    ),
    "roots": Case("add(sqrt(exp(%x)), add(rsqrt(exp(%x)), log(exp(%x))))", lambda x: (x / 2).exp() + (-x / 2).exp() + x),
    "softmax": Case("nn.softmax(%x, axis=1)", lambda x: x.softmax(1)),
    "log_softmax": Case("nn.log_softmax(%x)", lambda x: x.log_softmax(-1)),
    "dropout": Case("%0 = nn.dropout(%x, rate=0.2f); %0.0", lambda x: x),
    "identities": Case('annotation.stop_fusion(copy(cast(%x, dtype="float32")))', lambda x: x),
    "broadcast_to": Case("broadcast_to(%x, shape=[2, 4, 9, 8])", lambda x: x.expand(2, -1, -1, -1)),
    "layout_transform": Case(
        'layout_transform(%x, src_layout="NHWC", dst_layout="NCHW")', lambda x: x.permute(0, 3, 1, 2)
    ),
    "infix": Case("%x * 2f + -1f - %x / 4f", lambda x: x * 2 - 1 - x / 4),
    "let, blocks, tuples": Case(
        "let %y: Tensor[(1, 4, 9, 8), float32] = nn.relu(%x);\nlet %z = ({ %0 = %y + 1f; %0 }, (%y,));\n"
        "%1 = %z.1;\nadd(%z.0, %1.0)",
        lambda x: x.relu() * 2 + 1,
    ),
    "functions": Case(
        "%0 = fn (%p: Tensor[(1, 4, 9, 8), float32], Primitive=1) -> Tensor[(1, 4, 9, 8), float32] { nn.relu(%p) + %x };\n"
        "%0(@twice(%x))",
        lambda x: (2 * x).relu() + x,
    ),
}  # fmt: skip


def values(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"x": case.shape, **case.params}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | ({"v": np.abs(arrays["v"]) + 0.5} if "v" in arrays else {})


def text_of(case: Case) -> str:
    params = ", ".join(f"%{n}: Tensor[{v.shape}, float32]" for n, v in values(case).items())
    twice = "def @twice(%a: Tensor[(1, 4, 9, 8), float32]) { %a + %a }\n" if "@twice" in case.body else ""
    return f'#[version = "0.0.5"]\ndef @main({params}) {{\n{case.body}\n}}\n{twice}'


@pytest.fixture(scope="module")
def batch() -> Batch:
    def load(case: Case) -> Callable[[], object]:
        return lambda: from_relay_text(text_of(case), {n: v for n, v in values(case).items() if n != "x"})

    return Batch({name: load(case) for name, case in CASES.items()})


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_pytorch(batch: Batch, name: str) -> None:
    arrays = values(CASES[name])
    expected = CASES[name].expected(*[torch.from_numpy(v) for v in arrays.values()]).numpy()
    got = batch.run(name, arrays["x"])
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_every_operator_has_a_case() -> None:
    text = " ".join(case.body for case in CASES.values())
    infix = {"subtract", "multiply", "divide", "add"}
    synonyms = {
        "fast_tanh",
        "fast_exp",
        "fast_erf",
        "nn.fast_softmax",
        "on_device",
        "device_copy",
        "annotation.cast_hint",
    }
    missing = {n for n in supported_operators() if f"{n}(" not in text} - infix - synonyms
    assert not missing
