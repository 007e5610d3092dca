"""Schedule rules per operator and tuned records."""

if __name__ == "schedules":
    raise ImportError("import tvm_tinytrain.schedules instead of schedules: two copies of a module differ")

from tvm_tinytrain.schedules.elementwise import elementwise
from tvm_tinytrain.schedules.fallback import fallback
from tvm_tinytrain.schedules.gemm import gemm
from tvm_tinytrain.schedules.records import Tuned
from tvm_tinytrain.schedules.runtime_rows import runtime_rows
from tvm_tinytrain.schedules.schedule_kernels import Rule, ScheduleKernels
from tvm_tinytrain.schedules.streamed import streamed
from tvm_tinytrain.schedules.sums import sums
from tvm_tinytrain.schedules.window_weights import window_weights
from tvm_tinytrain.schedules.windows import windows

OWN_CHOICE: tuple[Rule, ...] = (
    streamed,
    runtime_rows,
    gemm,
    windows,
    window_weights,
    sums,
    elementwise,
    fallback,
)
"""All rules in the order in which they are asked, with the numbers that they choose themselves."""

RULES: tuple[Rule, ...] = (Tuned(), *OWN_CHOICE)
"""The tuned records that come with this package, then the rules."""

__all__ = ["OWN_CHOICE", "RULES", "Rule", "ScheduleKernels", "Tuned"]
