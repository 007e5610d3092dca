"""Published hard problems (google/minimalloc, "challenging"): each must fit into 1,048,576 bytes.

They are data and no part of the project: TINYTRAIN_MINIMALLOC names their folder, ../shared/data/minimalloc beside
the repository is looked at too. `python -m benchmarks.minimalloc` times them and looks for the least bytes.
"""

from __future__ import annotations

import pytest

from benchmarks.minimalloc import CAPACITY, default_folder
from tvm_tinytrain.memory import Effort, plan_memory, validate_plan
from tvm_tinytrain.plan import MemoryProblem

FOLDER = default_folder()


@pytest.mark.skipif(
    FOLDER is None, reason="no problems: set TINYTRAIN_MINIMALLOC to a folder of their CSV files"
)
@pytest.mark.parametrize("name", "ABCDEF")
def test_the_problem_fits(name: str) -> None:
    assert FOLDER is not None
    problem = MemoryProblem.from_csv((FOLDER / f"{name}.{CAPACITY}.csv").read_text(), CAPACITY)
    plan = plan_memory(problem, effort=Effort(improve=0))
    validate_plan(problem, plan)
    assert plan.peak <= CAPACITY
