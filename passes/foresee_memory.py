"""How long the bytes of a function's tensors will live once masks are packed and dead operands are overwritten.

An analysis for passes that decide by the peak before those two have run: it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import relax

from tvm_tinytrain.passes.compress_masks import find_masks
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.masks import mask_bytes
from tvm_tinytrain.passes.liveness import Liveness, bytes_of, liveness
from tvm_tinytrain.passes.rewriting import bindings, callee, dtype_of, op_name, operands, shape_of

_KERNELS = ("clip_grad", "activation", "activation_grad")
_OPERATORS = ("relax.add", "relax.subtract", "relax.multiply")
_BY_PLANES = ("conv2d", "conv2d_input_grad")


@dataclass(frozen=True)
class Foreseen:
    """Life spans of a function's tensors as they will be.

    ``spans`` are those of the function as it stands; ``last`` replaces some of its last uses; ``masks`` are (first binding, last
    binding, bytes); ``in_place`` are results that will take the bytes of an operand.
    """

    spans: Liveness
    last: dict[relax.Var, int]
    masks: tuple[tuple[int, int, int], ...] = ()
    in_place: frozenset[relax.Var] = frozenset()

    def last_use(self, owner: relax.Var) -> int:
        """The binding that reads the bytes of ``owner`` for the last time."""
        return self.last.get(owner, self.spans.last[owner])


def foresee_memory(mod: tvm.IRModule, name: str, *, masks: bool, reuse: bool) -> Foreseen:
    """Life spans in function ``name`` if masks are packed (``masks``) and dead operands are overwritten (``reuse``)."""
    spans, everything = liveness(mod[name]), bindings(mod[name])
    last: dict[relax.Var, int] = {}
    read_until: dict[relax.Var, int] = {}
    found = find_masks(mod, name) if masks else {}
    for index, b in enumerate(everything):
        if b.var in found:
            owner = spans.owner(found[b.var].y)
            last[owner], read_until[owner] = found[b.var].before, index
    packed = tuple((last[o], until, mask_bytes(bytes_of(o) // 4)) for o, until in read_until.items())
    foreseen = Foreseen(spans, last, packed)
    if not reuse:
        return foreseen
    taken = {b.var for i, b in enumerate(everything) if _overwrites(mod, b, i, foreseen)}
    return Foreseen(spans, last, packed, frozenset(taken))


def _overwrites(mod: tvm.IRModule, b: relax.VarBinding, index: int, foreseen: Foreseen) -> bool:
    """Whether the result of a binding will take the bytes of an operand that dies there."""
    if not isinstance(b.var.ty, relax.TensorType) or not _works_in_place(mod, b.value):
        return False
    args = [a for a in operands(b.value) if isinstance(a, relax.Var)]
    owners = [foreseen.spans.owner(a) for a in args]
    return any(
        owners.count(owner) == 1
        and foreseen.spans.born.get(owner, -1) >= 0
        and foreseen.last_use(owner) == index
        and (shape_of(arg), dtype_of(arg)) == (shape_of(b.var), dtype_of(b.var))
        for arg, owner in zip(args, owners, strict=True)
    )


def _works_in_place(mod: tvm.IRModule, value: relax.Expr) -> bool:
    gv = callee(value)
    if gv is None:
        return op_name(value) in _OPERATORS
    if op_name(value) != "relax.call_tir":
        return False
    kind = kernel_kind(mod[gv])
    if kind not in _BY_PLANES:
        return kind in _KERNELS
    spec = Conv2DSpec.from_dict(kernel_spec(mod[gv]))
    return spec.depthwise and spec.stride == (1, 1)
