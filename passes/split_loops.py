"""SplitLoops: a loop whose first or last iterations meet conditions becomes several loops without them."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from tvm_tinytrain.passes.bound_loops import variables

PIECES = "tt.pieces"
"""Annotation of loops that may be split; schedules set it on loops over tiles."""
MAX_PIECES = 4
Interval = tuple[int, int]


@tvm.tirx.transform.prim_func_pass(opt_level=0, name="SplitLoops")
class SplitLoops:
    """``for o in 3: for i in 6: if o * 6 + i < 16: …`` → ``for o in 2: for i in 6: …``; o = 2: ``for i in 6: if 12 + i < 16: …``

    Splits where a condition, for all iterations of the loops inside, turns from true to undecided or false; what is left of the
    conditions is known after unrolling. Applies to serial loops of constant extent with the annotation ``tt.pieces``.
    """

    def transform_function(
        self, func: tirx.PrimFunc, mod: tvm.IRModule, ctx: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        """Rewrites all annotated loops, inner ones first."""
        return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.For, _split)]))


def _split(loop: tirx.For) -> Any:
    if PIECES not in (loop.annotations or {}):
        return loop
    others = {k: v for k, v in loop.annotations.items() if k != PIECES}
    plain = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body, annotations=others)
    if (
        others
        or not isinstance(loop.extent, tirx.IntImm)
        or not isinstance(loop.min, tirx.IntImm)
        or int(loop.min) != 0
    ):
        return plain
    conditions = _conditions(loop)
    if not conditions:
        return plain
    extent = int(loop.extent)
    ranges = _ranges_inside(loop)
    answers = [tuple(_holds(c, {**ranges, loop.loop_var: (t, t)}) for c in conditions) for t in range(extent)]
    starts = [t for t in range(extent) if t == 0 or answers[t] != answers[t - 1]]
    if len(starts) == 1 or len(starts) > MAX_PIECES:
        return plain
    pieces = [_piece(loop, a, b) for a, b in zip(starts, [*starts[1:], extent], strict=True)]
    return tirx.SeqStmt(pieces)


def _piece(loop: tirx.For, start: int, end: int) -> Any:
    """Iterations start .. end - 1 as a statement of their own."""
    dtype = loop.loop_var.ty.dtype
    if end - start == 1:
        return _replace(loop.body, loop.loop_var, tirx.IntImm(dtype, start))
    fresh = tirx.Var(loop.loop_var.name, dtype)
    body = _replace(loop.body, loop.loop_var, fresh + start if start else fresh)
    return tirx.For(fresh, tirx.IntImm(dtype, 0), tirx.IntImm(dtype, end - start), loop.kind, body)


def _replace(stmt: Any, variable: Any, value: Any) -> Any:
    return tvm_ffi.structural_map(stmt, [(tvm.ir.Var, lambda v: value if v.same_as(variable) else v)])


def _conditions(loop: tirx.For) -> list[Any]:
    """Comparisons in the loop, of statements and of ``if_then_else``, that depend on its variable."""
    found: list[Any] = []

    def add(condition: Any) -> None:
        if isinstance(condition, (tirx.And, tirx.Or)):
            add(condition.a)
            add(condition.b)
        elif loop.loop_var in variables(condition) and not any(
            tvm_ffi.structural_equal(condition, f) for f in found
        ):
            found.append(condition)

    def on_call(call: Any) -> None:
        if str(getattr(call.op, "name", "")).endswith("if_then_else"):
            add(call.args[0])

    tvm_ffi.structural_walk(
        loop.body, [(tirx.IfThenElse, lambda s: add(s.condition)), (tvm.ir.Call, on_call)]
    )
    return found


def _ranges_inside(loop: tirx.For) -> dict[Any, Interval]:
    """Value ranges of the variables of loops inside whose bounds are constant."""
    ranges: dict[Any, Interval] = {}

    def visit(inner: tirx.For) -> None:
        if isinstance(inner.min, tirx.IntImm) and isinstance(inner.extent, tirx.IntImm):
            ranges[inner.loop_var] = (int(inner.min), int(inner.min) + int(inner.extent) - 1)

    tvm_ffi.structural_walk(loop.body, [(tirx.For, visit)])
    return ranges


def _holds(condition: Any, ranges: dict[Any, Interval]) -> bool | None:
    """Whether a comparison holds for all values of its variables (True), for none (False), or neither is certain (None)."""
    kind = type(condition).__name__
    if kind not in ("LT", "LE", "GT", "GE"):
        return None
    a, b = _interval(condition.a, ranges), _interval(condition.b, ranges)
    if a is None or b is None:
        return None
    if kind in ("GT", "GE"):
        a, b = b, a
    low, high = b[0] - a[1], b[1] - a[0]  # of b - a
    least = 1 if kind in ("LT", "GT") else 0
    return True if low >= least else False if high < least else None


def _interval(expr: Any, ranges: dict[Any, Interval]) -> Interval | None:
    """Bounds of an integer expression, None where a part of it is unknown."""
    if isinstance(expr, tirx.IntImm):
        return int(expr), int(expr)
    if isinstance(expr, tvm.ir.Var):
        return ranges.get(expr)
    kind = type(expr).__name__
    if kind not in ("Add", "Sub", "Mul", "FloorDiv"):
        return None
    a, b = _interval(expr.a, ranges), _interval(expr.b, ranges)
    if a is None or b is None:
        return None
    if kind == "Add":
        return a[0] + b[0], a[1] + b[1]
    if kind == "Sub":
        return a[0] - b[1], a[1] - b[0]
    if kind == "Mul":
        products = [x * y for x in a for y in b]
        return min(products), max(products)
    return (a[0] // b[0], a[1] // b[0]) if b[0] == b[1] and b[0] > 0 else None
