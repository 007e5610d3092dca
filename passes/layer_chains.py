"""Which bindings make up a layer: a product with a weight, the bias behind it, and the clamp behind that."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import relax

from tvm_tinytrain.passes.rewriting import bindings, op_name, operands, shape_of, use_counts

CONVOLUTIONS = (
    "relax.nn.conv2d",
    "relax.nn.conv1d",
    "relax.nn.conv2d_transpose",
    "relax.nn.conv1d_transpose",
)

_OF_WEIGHTS = (*CONVOLUTIONS, "relax.matmul", "relax.permute_dims")


@dataclass
class Chain:
    """A layer's operator with the bias add and the clamp that follow it: what one kernel computes."""

    root: relax.VarBinding
    weight: relax.Var
    bias: relax.Var | None = None
    low: float | None = None
    high: float | None = None

    @property
    def clamped(self) -> bool:
        """Whether a clamp follows."""
        return self.low is not None or self.high is not None


def find_chains(func: relax.Function, params: set[str]) -> tuple[dict[relax.Var, Chain], set[relax.Var]]:
    """The chains of a function by their last variables, and the variables inside of chains.

    params: names of the parameters that hold values. Views between the operators of a chain belong to it where they keep the
    channels' axis; an intermediate that something else reads ends it.
    """
    graph = _Graph(func, params)
    chains: dict[relax.Var, Chain] = {}
    inside: set[relax.Var] = set()
    for root in bindings(func):
        weight = graph.weight_of(root)
        if weight is not None:
            chain = Chain(root, weight)
            *inner, end = graph.follow(chain)
            chains[end] = chain
            inside.update(inner)
    return chains, inside


def adds_per_channel(shape: tuple[int, ...], out: tuple[int, ...], axis: int) -> bool:
    """Whether adding a tensor of ``shape`` to one of shape ``out`` adds one value per index of ``axis``."""
    return (1,) * (len(out) - len(shape)) + shape == tuple(d if i == axis else 1 for i, d in enumerate(out))


class _Graph:
    """Who makes and who reads the variables of a function."""

    def __init__(self, func: relax.Function, params: set[str]) -> None:
        self._params = params
        self._uses = use_counts(func)
        self._defs = {b.var: b.value for b in bindings(func)}
        self._readers: dict[relax.Var, list[relax.VarBinding]] = {}
        for b in bindings(func):
            for operand in operands(b.value):
                if isinstance(operand, relax.Var):
                    self._readers.setdefault(operand, []).append(b)

    def weight_of(self, root: relax.VarBinding) -> relax.Var | None:
        """The parameter with which a convolution or a matrix product makes a layer."""
        name = op_name(root.value)
        if name not in (*CONVOLUTIONS, "relax.matmul"):
            return None
        weight = right = root.value.args[1]
        if name == "relax.matmul":
            if len(shape_of(right)) != 2:
                return None
            if op_name(self._defs.get(right)) == "relax.permute_dims":
                weight = self._defs[right].args[0]
        if not self._is_param(weight):
            return None
        turned = name != "relax.nn.conv2d" and weight == right
        if turned and any(
            op_name(reader.value) != name or reader.value.args[1] != weight
            for reader in self._readers[weight]
        ):
            return None  # the kernel wants it in another form, but something else reads it as it is
        return weight

    def follow(self, chain: Chain) -> list[relax.Var]:
        """Take what follows the product into the chain; returns the chain's variables in order."""
        found = [chain.root.var]
        views: list[relax.Var] = []  # behind ``found``: part of the chain once something of it follows
        shape = shape_of(chain.root.var)
        axis = 1 if op_name(chain.root.value) in CONVOLUTIONS else len(shape) - 1
        while not chain.clamped:
            last = [*found, *views][-1]
            after = self._only_reader(last)
            if after is None:
                break
            if op_name(after.value) == "relax.reshape":
                kept = _same_axis(shape, axis, shape_of(after.var))
                if kept is None:
                    break
                shape, axis = shape_of(after.var), kept
                views.append(after.var)
            elif self._takes(chain, after, last, axis):
                found += [*views, after.var]
                views = []
            else:
                break
        return found

    def _takes(self, chain: Chain, after: relax.VarBinding, last: relax.Var, axis: int) -> bool:
        """Whether ``after``, which reads ``last``, is a bias or a clamp of the chain; if so it is noted there."""
        kind = op_name(after.value)
        if kind == "relax.add" and chain.bias is None:
            other = [a for a in after.value.args if a != last]
            if len(other) == 1 and shape_of(after.var) == shape_of(last):
                chain.bias = self._as_bias(other[0], shape_of(last), axis)
            return chain.bias is not None
        if kind == "relax.nn.relu":
            chain.low = 0.0
        elif kind == "relax.clip":
            chain.low, chain.high = (float(a.value) for a in after.value.args[1:])
        return chain.clamped

    def _as_bias(self, expr: relax.Expr, out: tuple[int, ...], axis: int) -> relax.Var | None:
        """The parameter behind ``expr`` if adding it adds one value per channel, ``axis`` of the ``out`` shape."""
        param = expr
        while op_name(self._defs.get(param)) == "relax.reshape":
            param = self._defs[param].args[0]
        if not self._is_param(param) or not adds_per_channel(shape_of(expr), out, axis):
            return None
        is_weight = any(op_name(r.value) in _OF_WEIGHTS for r in self._readers[param])  # it keeps its shape
        return param if len(shape_of(param)) == 1 or not is_weight else None

    def _is_param(self, expr: relax.Expr) -> bool:
        return isinstance(expr, relax.Var) and expr not in self._defs and expr.name in self._params

    def _only_reader(self, var: relax.Var) -> relax.VarBinding | None:
        """The binding that reads ``var``, if nothing else does, not even the result."""
        return self._readers[var][0] if self._uses.get(var, 0) == 1 and var in self._readers else None


def _same_axis(shape: tuple[int, ...], axis: int, new: tuple[int, ...]) -> int | None:
    """Where ``axis`` of a tensor is when it is viewed in the shape ``new``; None where the view divides or joins it."""
    before = math.prod(shape[:axis])
    found = [i for i, d in enumerate(new) if d == shape[axis] and math.prod(new[:i]) == before]
    return found[-1] if found else None
