"""ScheduleKernels: every kernel gets the first schedule that a rule offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

Rule = Callable[[tirx.PrimFunc, tvm.target.Target], Schedule | None]


@tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels:
    """Tries ``rules`` in order on each PrimFunc; the first one that does not answer None decides."""

    def __init__(self, target: tvm.target.Target, rules: Sequence[Rule]) -> None:
        self.target = target
        self.rules = tuple(rules)

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Replaces the kernels' bodies."""
        out = {}
        for gv, func in mod.functions.items():
            out[gv] = self._scheduled(func) if isinstance(func, tirx.PrimFunc) else func
        return tvm.IRModule(out, attrs=mod.attrs)

    def _scheduled(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        for rule in self.rules:
            schedule = rule(func, self.target)
            if schedule is not None:
                return schedule.mod["main"].with_attrs(dict(func.attrs.items()))
        return func
