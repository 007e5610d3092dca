"""BoundLoops: a condition on a loop's variable around all of its body becomes the loop's bounds."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.sym import Analyzer


@tvm.tirx.transform.prim_func_pass(opt_level=0, name="BoundLoops")
class BoundLoops:
    """``for k in 3: for c in 8: if i + k >= 1: …``  →  ``for k in max(0, 1 - i) .. 3: for c in 8: …``

    Only loops that stay loops: one that is to be unrolled keeps its trip count, and the condition in it.
    """

    def transform_function(
        self, func: tirx.PrimFunc, mod: tvm.IRModule, ctx: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrites all serial loops, inner ones first."""
        return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.For, _bound)]))


@tvm.tirx.transform.prim_func_pass(opt_level=0, name="DropSingleLoops")
class DropSingleLoops:
    """``for k in i .. i + 1: …k…``  →  ``…i…``

    Bounds leave such loops where a window is as large as its input; TVM's analyzer fails on their ranges.
    """

    def transform_function(
        self, func: tirx.PrimFunc, mod: tvm.IRModule, ctx: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrites all serial loops of one iteration."""
        return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.For, _drop_single)]))


def _drop_single(loop: tirx.For) -> Any:
    single = isinstance(loop.extent, tirx.IntImm) and int(loop.extent) == 1
    if not single or loop.kind != tirx.ForKind.SERIAL or loop.annotations:
        return loop
    start, variable = loop.min, loop.loop_var
    return tvm_ffi.structural_map(loop.body, [(tvm.ir.Var, lambda v: start if v.same_as(variable) else v)])


def _bound(loop: tirx.For) -> tirx.For:
    if loop.kind != tirx.ForKind.SERIAL or loop.annotations:
        return loop
    analyzer = Analyzer()
    low, high = loop.min, analyzer.simplify(loop.min + loop.extent)
    first, last = low, high
    used = []
    for condition in _conditions(loop.body, loop.loop_var):
        bounds = _solve(condition, loop.loop_var, analyzer)
        if bounds is None:
            continue
        used.append(condition)
        if bounds[0] is not None:
            low = tirx.max(low, bounds[0])
        if bounds[1] is not None:
            high = tirx.min(high, bounds[1])
    if not used:
        return loop
    body = _without(loop.body, used)
    if _same(low, first) and _same(high, last):
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body)
    low, high = analyzer.simplify(low), analyzer.simplify(high)
    return tirx.For(loop.loop_var, low, analyzer.simplify(high - low), loop.kind, body)


def _conditions(body: Any, variable: Any) -> list[Any]:
    """Comparisons that guard everything inside and know ``variable`` but no variable of a loop between."""
    found, inner = [], set()
    while True:
        if isinstance(body, tirx.For):
            inner.add(body.loop_var)
            body = body.body
        elif isinstance(body, tirx.IfThenElse) and body.else_case is None:
            for part in _parts(body.condition):
                names = variables(part)
                if variable in names and not names & inner:
                    found.append(part)
            body = body.then_case
        else:
            return found


def _without(body: Any, used: list[Any]) -> Any:
    """The body with the comparisons ``used`` left out of its conditions."""
    if isinstance(body, tirx.For):
        inner = _without(body.body, used)
        return tirx.For(
            body.loop_var, body.min, body.extent, body.kind, inner, body.thread_binding, body.annotations
        )
    if isinstance(body, tirx.IfThenElse) and body.else_case is None:
        inner = _without(body.then_case, used)
        rest = [p for p in _parts(body.condition) if not any(p.same_as(u) for u in used)]
        if not rest:
            return inner
        return tirx.IfThenElse(rest[0] if len(rest) == 1 else tirx.all(*rest), inner, None)
    return body


def _solve(condition: Any, variable: Any, analyzer: Analyzer) -> tuple[Any, Any] | None:
    """(first value, value behind the last) of ``variable`` for which a linear comparison holds; None if it is not of that form."""
    kind = type(condition).__name__
    if kind in ("GT", "GE"):
        left, right, strict = condition.b, condition.a, kind == "GT"
    elif kind in ("LT", "LE"):
        left, right, strict = condition.a, condition.b, kind == "LT"
    else:
        return None
    # left (+ 1 if strict) <= right  <=>  0 <= difference = slope * variable + rest
    difference = right - left - (1 if strict else 0)
    rest = analyzer.simplify(_at(difference, variable, 0))
    slope = analyzer.simplify(_at(difference, variable, 1) - rest)
    if not isinstance(slope, tirx.IntImm) or int(slope) == 0:
        return None
    if not analyzer.can_prove_equal(difference, slope * variable + rest):
        return None
    step = int(slope)
    if step > 0:  # variable >= -rest / step
        return analyzer.simplify(tirx.floordiv(step - 1 - rest, step)), None
    return None, analyzer.simplify(tirx.floordiv(rest, -step) + 1)


def _parts(condition: Any) -> list[Any]:
    if isinstance(condition, tirx.And):
        return [*_parts(condition.a), *_parts(condition.b)]
    return [condition]


def _at(expr: Any, variable: Any, value: int) -> Any:
    constant = tirx.IntImm(variable.ty.dtype, value)
    return tvm_ffi.structural_map(expr, [(tvm.ir.Var, lambda v: constant if v.same_as(variable) else v)])


def _same(a: Any, b: Any) -> bool:
    return bool(tvm_ffi.structural_equal(a, b))


def variables(expr: Any) -> set[Any]:
    """The variables of an expression."""
    found: set[Any] = set()
    tvm_ffi.structural_walk(expr, [(tvm.ir.Var, found.add)])
    return found
