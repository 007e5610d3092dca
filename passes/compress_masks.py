"""CompressMasks: a clamp's output that only the clamp's own gradient still needs is kept as one bit per element."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import relax

from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.masks import clip_grad_mask, mask_bytes, pack_mask
from tvm_tinytrain.passes.liveness import live_bytes, liveness
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, callee, rebuild, shape_of

MIN_GAP = 2
"""Bindings between the last other use and the gradient of the clamp, below which a mask saves nothing: the buffer is still there."""


@dataclass(frozen=True)
class _Saved:
    """A clamped output y: the binding ``before`` which its mask is packed, and the gradients that then read the mask."""

    y: relax.Var
    before: int
    low: float | None
    high: float | None


@tvm.transform.module_pass(opt_level=0, name="CompressMasks")
class CompressMasks:
    """``…use(y)… ; dx = clip_grad(y, dy)``  →  ``mask = pack_mask(y); …use(y)… ; dx = clip_grad_mask(mask, dy)``, and y dies early.

    By liveness: y is packed in front of its last use that is not the gradient of its clamp, if other tensors come to life between that
    use and the gradient. A function whose peak that does not lower stays as it is. Runs after
    FuseUpdate.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites every Relax function that has gradients of clamps."""
        for name in sorted(gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function)):
            saved = find_masks(mod, name)
            if not saved:
                continue
            changed = _rewrite(mod, name, saved)
            if max(live_bytes(changed[name])) < max(live_bytes(mod[name])):
                mod = changed
        return mod


def find_masks(mod: tvm.IRModule, name: str) -> dict[relax.Var, _Saved]:
    """By the result of each ``clip_grad`` whose saved output is worth a mask: what to pack and where."""
    func = mod[name]
    everything = bindings(func)
    spans = liveness(func)
    defined = {b.var: index for index, b in enumerate(everything)}
    grads: dict[relax.Var, list[int]] = {}
    for index, b in enumerate(everything):
        gv = callee(b.value)
        if gv is not None and kernel_kind(mod[gv]) == "clip_grad":
            grads.setdefault(spans.owner(b.value.args[1].fields[0]), []).append(index)
    found: dict[relax.Var, _Saved] = {}
    for owner, places in grads.items():
        others = [i for i in spans.reads[owner] if i not in places]
        if spans.last[owner] >= len(everything) or spans.born.get(owner, -1) < 0:
            continue
        first = min(places)
        saved = everything[first].value.args[1].fields[0]
        last = max([*others, defined[saved] + 1])
        if last > first or first - last < MIN_GAP:
            continue
        limits = {
            tuple(kernel_spec(mod[callee(everything[i].value)])[k] for k in ("low", "high")) for i in places
        }
        if len(limits) != 1:
            continue
        (low, high) = limits.pop()
        for i in places:
            found[everything[i].var] = _Saved(saved, last, low, high)
    return found


def _rewrite(mod: tvm.IRModule, name: str, saved: dict[relax.Var, _Saved]) -> tvm.IRModule:
    func = mod[name]
    by_place: dict[int, list[_Saved]] = {}
    for s in {s.y: s for s in saved.values()}.values():
        by_place.setdefault(s.before, []).append(s)

    def body(r: Rebuilder) -> relax.Expr:
        masks: dict[relax.Var, relax.Var] = {}
        for index, b in enumerate(bindings(func)):
            for s in by_place.get(index, []):
                size = math.prod(shape_of(s.y))
                flat = r.emit(relax.op.reshape(r.look(s.y), (size,)))
                kernel = pack_mask(size, s.low, s.high)
                masks[s.y] = r.kernel(kernel, [flat], (mask_bytes(size),), f"mask_{s.y.name}", dtype="uint8")
            if b.var not in saved:
                r.keep(b)
                continue
            shape = shape_of(b.var)
            size = math.prod(shape)
            dy = r.emit(relax.op.reshape(r.look(b.value.args[1].fields[1]), (size,)))
            dx = r.kernel(clip_grad_mask(size), [masks[saved[b.var].y], dy], (size,), b.var.name)
            r.env[b.var] = r.emit(relax.op.reshape(dx, shape))
        return r.look(func.body.body)

    return rebuild(mod, name, body, attrs=dict(func.attrs))
