"""The building blocks of a network, found in its graph: what TinyTL puts a branch beside."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax

from tvm_tinytrain.passes.rewriting import bindings, op_name, operands, shape_of

_JOINS = ("relax.add", "relax.concat")


@dataclass(frozen=True)
class TrunkBlock:
    """One block of ``func``: ``x`` [1, C, H, W] goes in, ``y`` [1, C', H', W'] comes out, and nothing else connects it to the rest.

    ``first`` and ``last`` are the indices of its first binding and of the one that makes ``y``.
    """

    x: relax.Var
    y: relax.Var
    first: int
    last: int


def trunk_blocks(func: relax.Function) -> tuple[TrunkBlock, ...]:
    """The blocks of a convolutional network in order, from its operators before layers are lowered.

    A block ends where all paths meet in one value that is a sum or a concatenation of branches, or a 1×1 convolution behind a
    depthwise one (with the bias and the activation that follow). The first convolution of the network, its stem, belongs to no
    block; so do a lone feature mix and the head. Empty for a network of another make.
    """
    finder = _Finder(func)
    return tuple(finder.blocks())


class _Finder:
    def __init__(self, func: relax.Function) -> None:
        self.everything = bindings(func)
        inputs = list(func.params[: int(func.attrs["num_input"])])
        self.data: set[relax.Var] = set(inputs)
        self.last_use: dict[relax.Var, int] = {}
        for index, b in enumerate(self.everything):
            read = [o for o in operands(b.value) if o in self.data]
            if read:
                self.data.add(b.var)
            self.last_use.update((o, index) for o in read)
        for o in operands(func.body.body):
            self.last_use[o] = len(self.everything)
        self.cuts = self._cuts(inputs)

    def _cuts(self, inputs: list[relax.Var]) -> set[int]:
        """Bindings whose value is all that the rest of the network reads of what was computed so far."""
        live, found = set(inputs), set[int]()
        for index, b in enumerate(self.everything):
            if b.var in self.data and b.var in self.last_use:
                live.add(b.var)
            live = {v for v in live if self.last_use.get(v, -1) > index}
            if live == {b.var}:
                found.add(index)
        return found

    def blocks(self) -> list[TrunkBlock]:
        """Walks along the trunk from the stem on."""
        found: list[TrunkBlock] = []
        start: int | None = None  # the binding that makes the next block's input
        depthwise = False
        for index, b in enumerate(self.everything):
            convolution = op_name(b.value) == "relax.nn.conv2d"
            if start is None:
                if convolution:
                    start = self._with_what_follows(index)
                continue
            if index <= start:
                continue
            if convolution and int(b.value.attrs.groups) > 1:
                depthwise = True
            pointwise = convolution and shape_of(b.value.args[1])[2:] == (1, 1)
            if index in self.cuts and (self._joins(b) or (pointwise and depthwise)):
                end = self._with_what_follows(index)
                x, y = self.everything[start].var, self.everything[end].var
                if start in self.cuts and len(shape_of(y)) == 4:
                    found.append(TrunkBlock(x, y, start + 1, end))
                start, depthwise = end, False
        return found

    def _joins(self, b: relax.VarBinding) -> bool:
        return op_name(b.value) in _JOINS and sum(o in self.data for o in operands(b.value)) > 1

    def _with_what_follows(self, index: int) -> int:
        """The binding at the end of the bias and activation behind ``index``: operators that keep the shape and read nothing else."""
        shape = shape_of(self.everything[index].var)
        while index + 1 < len(self.everything):
            following = index + 1
            while following < len(self.everything) and self.everything[following].var not in self.data:
                following += 1  # a view of a parameter
            if following == len(self.everything):
                return index
            after, here = self.everything[following], self.everything[index].var
            alone = self.last_use.get(here) == following and [
                o for o in operands(after.value) if o in self.data
            ] == [here]
            layer = op_name(after.value).startswith("relax.nn.conv") or op_name(after.value) == "relax.matmul"
            same = isinstance(after.var.ty, relax.TensorType) and shape_of(after.var) == shape
            if not alone or layer or not same or "pool" in op_name(after.value):
                return index
            index = following
        return index
