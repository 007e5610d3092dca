"""Where buffers lie: MemoryProblem -> `plan_memory` -> MemoryPlan -> `validate_plan`.

Needs nothing but the standard library. Tensors that share storage by intent (in-place operators, views) reach
the planner as one Buffer: the caller merges the chain, union of lifetimes and largest size.
"""

from tvm_tinytrain.memory.lower_bound import Peak, lower_bound, lower_bound_peak
from tvm_tinytrain.memory.picture import plot_plan, text_plan
from tvm_tinytrain.memory.planner import GREEDY, NORMAL, THOROUGH, Effort, plan_memory
from tvm_tinytrain.memory.stored import load_plan, store_plan
from tvm_tinytrain.memory.validator import validate_plan

__all__ = [
    "GREEDY",
    "NORMAL",
    "THOROUGH",
    "Effort",
    "Peak",
    "load_plan",
    "lower_bound",
    "lower_bound_peak",
    "plan_memory",
    "plot_plan",
    "store_plan",
    "text_plan",
    "validate_plan",
]
