"""ScheduleKernels and LowerKernels: the C of every kernel computes what the kernel as written computes."""

from __future__ import annotations

import pytest
import tvm

from tests.passes.kernel_cases import arguments, assert_results, kernels, reference
from tvm_tinytrain.emit.kernel_set import emit_kernel_set
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.passes.lower_kernels import LowerKernels
from tvm_tinytrain.schedules import RULES, ScheduleKernels
from tvm_tinytrain.targets.target import parse_target


def lowered(target: tvm.target.Target, *, scheduled: bool) -> dict[str, tvm.tirx.PrimFunc]:
    mod = tvm.IRModule({name: func.without_attr("global_symbol") for name, func in kernels().items()})
    mod = ScheduleKernels(target, RULES)(mod) if scheduled else mod
    return {gv.name_hint: func for gv, func in LowerKernels(target)(mod).functions.items()}


@pytest.mark.host_compiler
@pytest.mark.parametrize(("target", "scheduled"), [("c -mcpu=cortex-m7", True), ("host", False)])
def test_emitted_kernels(target: str, scheduled: bool) -> None:
    built = emit_kernel_set("cases", lowered(parse_target(target).to_tvm(), scheduled=scheduled))
    with InProcess(built, cflags=["-O1"]) as library:
        for name, kernel in kernels().items():
            given = arguments(kernel)
            for arg, value in zip(built.arguments[name], given, strict=True):
                library.write(arg.tensor, value)
            library.call(name)
            got = [library.read(arg.tensor) for arg in built.arguments[name]]
            assert_results(kernel, got, reference(name, given), name)
