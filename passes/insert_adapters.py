"""InsertAdapters: TinyTL's lite residual modules, small trainable branches beside the frozen blocks of a backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, rebuild, shape_of
from tvm_tinytrain.passes.state import free_name, get_values, with_adapters, with_values
from tvm_tinytrain.passes.trunk import TrunkBlock, trunk_blocks


@dataclass(frozen=True)
class LiteResidual:
    """The branch of one block, from x[1, C, H, W] to y[1, C', H', W'].

    Average pooling by ``pool`` → ``kernel``² convolution in ``groups`` with the block's stride → ReLU → 1×1 convolution → nearest
    upsampling to the block's output (Cai et al., "TinyTL", NeurIPS 2020, §3.2; batch norms folded).
    """

    x_shape: tuple[int, ...]
    y_shape: tuple[int, ...]
    kernel: int
    groups: int
    pool: int

    @property
    def pooled(self) -> tuple[int, int]:
        """Height and width behind the pooling; what is left over at an edge is a smaller window."""
        return (-(-self.x_shape[2] // self.pool), -(-self.x_shape[3] // self.pool))

    @property
    def stride(self) -> tuple[int, int]:
        """The block's stride; 1 where it enlarges."""
        down, across = (max(1, round(x / y)) for x, y in zip(self.x_shape[2:], self.y_shape[2:], strict=True))
        return down, across

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width behind the first convolution, which is padded by kernel // 2."""
        height, width = (
            (side + 2 * (self.kernel // 2) - self.kernel) // s + 1
            for side, s in zip(self.pooled, self.stride, strict=True)
        )
        return height, width

    @property
    def factors(self) -> tuple[int, int]:
        """By how much the result is upsampled before its surplus is cut off."""
        height, width = (-(-y // i) for y, i in zip(self.y_shape[2:], self.inner, strict=True))
        return height, width

    @property
    def weight_shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the two convolutions."""
        inputs, groups = self.x_shape[1], math.gcd(self.groups, self.x_shape[1])
        return (inputs, inputs // groups, self.kernel, self.kernel), (self.y_shape[1], inputs, 1, 1)


@tvm.transform.module_pass(opt_level=0, name="InsertAdapters")
class InsertAdapters:
    """``y = block(x)``  →  ``y + upsample(conv1x1(relu(conv(pool(x)))))`` at all blocks, or without the first share of them.

    ``drop`` is AdapterDrop's share (Rücklé et al., EMNLP 2021): the backward pass ends at the first block that keeps its branch.
    The new weights are He-initialised from ``seed``, the last ones times ``gain``: with 0 the network computes what it did before.
    Their names are written to ``tt.adapters``. Runs before layers are lowered; the new operators still want `Canonicalize`.
    """

    def __init__(
        self,
        drop: float = 0.0,
        *,
        kernel: int = 5,
        groups: int = 2,
        pool: int = 2,
        gain: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.drop, self.kernel, self.groups, self.pool = drop, kernel, groups, pool
        self.gain, self.seed = gain, seed

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites ``main``."""
        func, values = mod["main"], get_values(mod)
        blocks = trunk_blocks(func)
        blocks = blocks[math.floor(len(blocks) * self.drop) :]
        if not blocks:
            raise PlanError(
                "insert adapters", "network", "no block", "inverted bottlenecks, residual blocks or concatenated branches",
                "train layers of the network itself",
            )  # fmt: skip
        rng = np.random.default_rng(self.seed)
        taken = {*values, *(p.name for p in func.params)}
        branches = {b.last: self._branch(b, n, values, taken, rng) for n, b in enumerate(blocks)}
        params = [p for _, _, own in branches.values() for p in own]

        def body(r: Rebuilder) -> relax.Expr:
            for index, b in enumerate(bindings(func)):
                r.keep(b)
                if index in branches:
                    block, spec, own = branches[index]
                    y = _emit_branch(r, r.look(block.x), spec, own)
                    r.env[b.var] = r.emit(relax.op.add(r.look(b.var), y))
            return r.look(func.body.body)

        mod = rebuild(mod, "main", body, params=[*func.params, *params], attrs=dict(func.attrs))
        return with_adapters(with_values(mod, values), tuple(p.name for p in params))

    def _branch(
        self,
        block: TrunkBlock,
        number: int,
        values: dict[str, np.ndarray],
        taken: set[str],
        rng: np.random.Generator,
    ) -> tuple[TrunkBlock, LiteResidual, list[relax.Var]]:
        spec = LiteResidual(shape_of(block.x), shape_of(block.y), self.kernel, self.groups, self.pool)
        own: list[relax.Var] = []
        for part, shape, gain in zip(("conv", "out"), spec.weight_shapes, (1.0, self.gain), strict=True):
            weight = rng.normal(scale=math.sqrt(2.0 / math.prod(shape[1:])), size=shape) * gain
            for kind, value in (("weight", weight), ("bias", np.zeros(shape[0]))):
                name = free_name(f"adapter{number}_{part}_{kind}", taken)
                taken.add(name)
                values[name] = value.astype(np.float32)
                own.append(relax.Var(name, relax.TensorType(value.shape, "float32")))
        return block, spec, own


def _emit_branch(r: Rebuilder, x: relax.Expr, spec: LiteResidual, own: list[relax.Var]) -> relax.Expr:
    weight, bias, out_weight, out_bias = own
    window, pad = [spec.pool, spec.pool], spec.kernel // 2
    pooled = r.emit(relax.op.nn.avg_pool2d(x, window, window, ceil_mode=True, count_include_pad=False))
    groups = spec.x_shape[1] // spec.weight_shapes[0][1]
    inner = r.emit(relax.op.nn.conv2d(pooled, weight, list(spec.stride), [pad, pad, pad, pad], groups=groups))
    inner = r.emit(relax.op.nn.relu(_add_bias(r, inner, bias)))
    y = _add_bias(r, r.emit(relax.op.nn.conv2d(inner, out_weight)), out_bias)
    size = [i * f for i, f in zip(spec.inner, spec.factors, strict=True)]
    if spec.factors != (1, 1):
        y = r.emit(
            relax.op.image.resize2d(
                y,
                size,
                layout="NCHW",
                method="nearest_neighbor",
                coordinate_transformation_mode="asymmetric",
                rounding_method="floor",
            )
        )
    if tuple(size) != spec.y_shape[2:]:
        y = r.emit(relax.op.strided_slice(y, [2, 3], [0, 0], list(spec.y_shape[2:])))
    return y


def _add_bias(r: Rebuilder, y: relax.Expr, bias: relax.Var) -> relax.Expr:
    return r.emit(relax.op.add(y, r.emit(relax.op.reshape(bias, [1, shape_of(bias)[0], 1, 1]))))
