"""Schedule rules per operator and tuned records."""

if __name__ == "schedules":
    raise ImportError("import tvm_tinytrain.schedules instead of schedules: two copies of a module differ")

from tvm_tinytrain.schedules.depthwise import depthwise
from tvm_tinytrain.schedules.fallback import fallback
from tvm_tinytrain.schedules.gemm import gemm
from tvm_tinytrain.schedules.layers import layers
from tvm_tinytrain.schedules.runtime_rows import runtime_rows
from tvm_tinytrain.schedules.schedule_kernels import Rule, ScheduleKernels

RULES: tuple[Rule, ...] = (runtime_rows, gemm, depthwise, layers, fallback)
"""All rules in the order in which they are asked."""

__all__ = ["RULES", "Rule", "ScheduleKernels"]
