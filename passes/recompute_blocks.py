"""RecomputeBlocks: a block's inner tensors are computed again on the way back, where that lowers the peak."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import tvm
from tvm import relax

from tvm_tinytrain.passes.block_segments import Segment, find_segments
from tvm_tinytrain.passes.foresee_memory import Foreseen, foresee_memory
from tvm_tinytrain.passes.liveness import bytes_of
from tvm_tinytrain.passes.rewriting import Rebuilder, bindings, rebuild
from tvm_tinytrain.passes.state import RECOMPUTED, get_json, with_json
from tvm_tinytrain.passes.stream_blocks import live_profile, stream_choices


@tvm.transform.module_pass(opt_level=0, name="RecomputeBlocks")
class RecomputeBlocks:
    """``h = f(x); y = g(h); …; dw = grad(h, dy)``  →  ``h = f(x); y = g(h); …; h' = f(x); dw = grad(h', dy)``, and h dies early.

    ``limits`` are bytes of live tensors by function; one that is not named, or that fits, stays. The cheapest segment that makes the
    function fit is computed again; while there is none, the one that frees most bytes per multiply-accumulate at the fullest
    moment. Then every segment that turns out not to be needed is taken back, the dearest first. No function goes below what
    another one needs anyway, because they share one arena. The same kernels run on the same values: results are the same to
    the last bit.

    ``stream``, ``masks`` and ``reuse`` say which passes follow. The attribute ``tt.recomputed`` of the module says what was chosen.
    """

    def __init__(
        self, limits: Mapping[str, int], *, stream: bool = True, masks: bool = True, reuse: bool = True
    ) -> None:
        self.limits = dict(limits)
        self.stream = stream
        self.masks = masks
        self.reuse = reuse

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites the functions that ``limits`` names."""
        names = sorted(gv.name_hint for gv, f in mod.functions.items() if isinstance(f, relax.Function))
        forward = [self._profile(mod, n) for n in names if not self._segments(mod, n)]
        floor = max((max(profile, default=0) for profile in forward), default=0)
        chosen: dict[str, list[Segment]] = {}
        for name in [n for n in names if n in self.limits]:
            base = rewrite(mod, name, [])
            chosen[name] = self._choose(base, name, max(self.limits[name], floor))
            mod = rewrite(base, name, chosen[name]) if chosen[name] else mod
        told = {
            n: {"segments": len(found), "macs": sum(s.macs for s in found)}
            for n, found in chosen.items()
            if found
        }
        return with_json(mod, RECOMPUTED, {**get_json(mod, RECOMPUTED, {}), **told})

    def _profile(self, mod: tvm.IRModule, name: str) -> list[int]:
        """Live bytes at each binding of a function, as later passes will leave it."""
        blocks = stream_choices(mod, name, masks=self.masks, reuse=self.reuse)[-1][1] if self.stream else []
        return live_profile(mod[name], self._foresee(mod, name), blocks)

    def _foresee(self, mod: tvm.IRModule, name: str) -> Foreseen:
        return foresee_memory(mod, name, masks=self.masks, reuse=self.reuse)

    def _segments(self, mod: tvm.IRModule, name: str) -> dict[int, Segment]:
        return {s.first: s for s in find_segments(mod, name, self._foresee(mod, name).last)}

    def _choose(self, base: tvm.IRModule, name: str, limit: int) -> list[Segment]:
        """The segments that bring the function to ``limit`` bytes, or as near to it as any do."""
        every = self._segments(base, name)
        tried: dict[frozenset[int], tuple[int, dict[int, int]]] = {}

        def outcome(chosen: Collection[int]) -> tuple[int, dict[int, int]]:
            """The peak, and what each segment that is not chosen would free there."""
            key = frozenset(chosen)
            if key not in tried:
                now = rewrite(base, name, [every[i] for i in sorted(key)])
                profile, left = self._profile(now, name), self._segments(now, name)
                fullest = profile.index(max(profile))
                possible = [s for i, s in left.items() if i in every and i not in key]
                tried[key] = max(profile), _freed(possible, self._foresee(now, name), fullest)
            return tried[key]

        chosen: list[int] = []
        best: list[int] = []
        while outcome(chosen)[0] > limit:
            peak, freed = outcome(chosen)
            if not freed:
                break
            enough = sorted((every[i].macs, i) for i, size in freed.items() if size >= peak - limit)
            last = next((i for _, i in enough if outcome([*chosen, i])[0] <= limit), None)
            most = max(freed, key=lambda i: (freed[i] / max(every[i].macs, 1), i))
            chosen = [*chosen, most if last is None else last]
            best = chosen if outcome(chosen)[0] < outcome(best)[0] else best
        reached = max(limit, outcome(best)[0])
        for segment in sorted(best, key=lambda i: (-every[i].macs, i)):
            fewer = [i for i in best if i != segment]
            best = fewer if outcome(fewer)[0] <= reached else best
        return [every[i] for i in sorted(best)]


def _freed(segments: Collection[Segment], foreseen: Foreseen, fullest: int) -> dict[int, int]:
    """By a segment's first binding the bytes that it frees at binding ``fullest``, if any."""
    found: dict[int, int] = {}
    for segment in segments:
        for owner in segment.owners:
            forward = max((i for i in foreseen.spans.reads.get(owner, ()) if i < segment.before), default=0)
            if forward < fullest < segment.before and foreseen.last_use(owner) >= fullest:
                found[segment.first] = found.get(segment.first, 0) + bytes_of(owner)
    return found


def rewrite(mod: tvm.IRModule, name: str, segments: Collection[Segment]) -> tvm.IRModule:
    """The function with the segments computed again; without any, the function itself less its other names of variables."""
    func = mod[name]
    everything = bindings(func)
    by_place: dict[int, list[Segment]] = {}
    for segment in segments:
        by_place.setdefault(segment.before, []).append(segment)

    def body(r: Rebuilder) -> relax.Expr:
        for index, b in enumerate(everything):
            for segment in by_place.get(index, []):
                for i in segment.again:
                    var = everything[i].var
                    r.env[var] = r.emit(r.look(everything[i].value), var.name)
            r.keep(b)
        return r.look(func.body.body)

    return rebuild(mod, name, body, attrs=dict(func.attrs))
