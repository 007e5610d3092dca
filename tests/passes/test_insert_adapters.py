"""InsertAdapters: where branches go, what they are, and that everything about them can be trained."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.script import ir as I
from tvm.script import relax as R

import tvm_tinytrain as tt
from benchmarks.gradients_networks import Compiler, measure_updates
from benchmarks.networks import zoo
from tests.passes.helpers import assert_same
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.insert_adapters import InsertAdapters, LiteResidual
from tvm_tinytrain.passes.rewriting import bindings, op_name, shape_of
from tvm_tinytrain.passes.state import get_adapters, get_values, with_values
from tvm_tinytrain.passes.trunk import trunk_blocks
from tvm_tinytrain.pipeline import canonicalise
from tvm_tinytrain.selection import inverted_bottlenecks, lite_residuals

BLOCKS = {
    "mcunet": 14, "resnet8": 3, "ds_cnn": 4, "mobilenet_v3_small": 11, "squeezenet": 8, "autoencoder": 0, "cnn_1d": 0,
}  # fmt: skip


@I.ir_module
class Before:
    @R.function
    def main(
        x: R.Tensor((1, 2, 5, 5), "float32"),
        stem: R.Tensor((2, 2, 1, 1), "float32"),
        dw: R.Tensor((2, 1, 3, 3), "float32"),
        pw: R.Tensor((3, 2, 1, 1), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.nn.conv2d(x, stem)
            b = R.nn.relu(a)
            c = R.nn.conv2d(b, dw, strides=2, padding=1, groups=2)
            d = R.nn.relu(c)
            e = R.nn.conv2d(d, pw)
            f = R.mean(e, axis=[2, 3])
            R.output(f)
        return f


@I.ir_module
class Expected:
    @R.function
    def main(
        x: R.Tensor((1, 2, 5, 5), "float32"),
        stem: R.Tensor((2, 2, 1, 1), "float32"),
        dw: R.Tensor((2, 1, 3, 3), "float32"),
        pw: R.Tensor((3, 2, 1, 1), "float32"),
        conv_weight: R.Tensor((2, 1, 3, 3), "float32"),
        conv_bias: R.Tensor((2,), "float32"),
        out_weight: R.Tensor((3, 2, 1, 1), "float32"),
        out_bias: R.Tensor((3,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            a = R.nn.conv2d(x, stem)
            b = R.nn.relu(a)
            c = R.nn.conv2d(b, dw, strides=2, padding=1, groups=2)
            d = R.nn.relu(c)
            e = R.nn.conv2d(d, pw)
            p = R.nn.avg_pool2d(b, pool_size=[2, 2], strides=[2, 2], ceil_mode=True, count_include_pad=False)
            i = R.nn.conv2d(p, conv_weight, strides=[2, 2], padding=[1, 1, 1, 1], groups=2)
            i_column = R.reshape(conv_bias, (1, 2, 1, 1))
            i_sum = R.add(i, i_column)
            r = R.nn.relu(i_sum)
            o = R.nn.conv2d(r, out_weight)
            o_column = R.reshape(out_bias, (1, 3, 1, 1))
            o_sum = R.add(o, o_column)
            u = R.image.resize2d(
                o_sum, R.shape([4, 4]), layout="NCHW", method="nearest_neighbor",
                coordinate_transformation_mode="asymmetric", rounding_method="floor",
            )  # fmt: skip
            s = R.strided_slice(u, axes=[2, 3], begin=[0, 0], end=[3, 3])
            y = R.add(e, s)
            f = R.mean(y, axis=[2, 3])
            R.output(f)
        return f


def before() -> tvm.IRModule:
    shapes = {"stem": (2, 2, 1, 1), "dw": (2, 1, 3, 3), "pw": (3, 2, 1, 1)}
    return with_values(Before, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def test_a_branch_beside_a_block() -> None:
    after = InsertAdapters(kernel=3)(before())
    assert_same(after, Expected)
    names = ("adapter0_conv_weight", "adapter0_conv_bias", "adapter0_out_weight", "adapter0_out_bias")
    assert get_adapters(after) == names
    values = get_values(after)
    assert values[names[0]].std() > 0.1
    assert not values[names[2]].any()  # the network computes what it did before


def test_weights_follow_seed_and_gain() -> None:
    one, same, other = (get_values(InsertAdapters(gain=1.0, seed=s)(before())) for s in (1, 1, 2))
    for name in ("adapter0_conv_weight", "adapter0_out_weight"):
        np.testing.assert_array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])


def canonical(name: str) -> tvm.IRModule:
    network = zoo()[name]
    mod = import_model(network.make(), example_inputs=(torch.zeros(network.input_shape),))
    for each in canonicalise()[:3]:
        mod = each(mod)
    return mod


@pytest.mark.parametrize(("name", "count"), BLOCKS.items())
def test_blocks_are_found(name: str, count: int) -> None:
    mod = canonical(name)
    blocks = trunk_blocks(mod["main"])
    assert len(blocks) == count
    for before, after in pairwise(blocks):
        assert before.y == after.x
        assert before.last < after.first
    everything = bindings(mod["main"])
    ids = {b.var: i for i, b in enumerate(b for b in everything if op_name(b.value) == "relax.nn.conv2d")}
    layers = [[ids[b.var] for b in everything[k.first : k.last + 1] if b.var in ids] for k in blocks]
    assert all(len(inside) > 1 for inside in layers)
    flat = [i for inside in layers for i in inside]
    assert flat == sorted(set(flat))


def test_branches_are_those_of_the_cost_model() -> None:
    net = zoo()["mcunet"].make()
    specs = inverted_bottlenecks(net.spec.stem_channels, net.spec.blocks, net.spec.mix_channels, size=64)
    expected = lite_residuals(specs, Fraction(1, 4))
    blocks = trunk_blocks(canonical("mcunet")["main"])[3:]
    assert len(expected) == len(blocks) == 11
    for adapter, block in zip(expected, blocks, strict=True):
        own = LiteResidual(shape_of(block.x), shape_of(block.y), 5, 2, 2)
        first, last = adapter.layers
        assert (own.pooled, own.inner, own.stride) == (first.in_shape[1:], first.out_shape[1:], first.stride)
        assert own.weight_shapes[0][0] == first.out_shape[0]
        assert own.weight_shapes[1][0] == last.out_shape[0]


@pytest.mark.host_compiler
def test_gradients() -> None:
    results = dict(measure_updates("resnet8", Compiler(), only=("AdapterDrop 0.5",)))
    assert {title: c.tensors for title, c in results.items()} == {"AdapterDrop 0.5": 9}
    for title, comparison in results.items():
        assert comparison.share <= 1.0, (title, comparison)


def test_last_layer_and_drop() -> None:
    network = zoo()["resnet8"]

    def trained(update: object) -> list[str]:
        module = tt.build(
            network.make(),
            "host",
            example_inputs=(torch.zeros(network.input_shape),),
            update=update,  # type: ignore[arg-type]
        )
        return [la.weight for la in module.layers if la.id in module.plan]

    assert trained(tt.AdapterDrop(0.75)) == ["adapter0_conv_weight", "adapter0_out_weight"]
    assert trained(tt.TinyTL(last_layer=True))[-1] == "head_weight"


def test_errors() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(
        PlanError, match=r"insert adapters: network: found no block; allowed inverted bottlenecks"
    ):
        tt.build(flat, "host", example_inputs=(torch.zeros(1, 3, 2, 2),), update=tt.TinyTL())
    with pytest.raises(PlanError, match=r"AdapterDrop: found 1\.0; allowed a share of at least 0, below 1"):
        tt.AdapterDrop(1.0)
    with pytest.raises(PlanError, match=r"TinyTL pool: found 0"):
        tt.TinyTL(pool=0)
