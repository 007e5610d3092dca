"""Place published hard buffer-allocation problems within their capacity, and as low as the planner can.

The problems are CSV files named NAME.CAPACITY.csv with the columns id, lower, upper, size, as google/minimalloc
publishes them; six of its "challenging" ones are the reference. One process, one thread.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Report, parse, parser, print_table
from tvm_tinytrain.memory import Effort, plan_memory, validate_plan
from tvm_tinytrain.plan import MemoryProblem

CAPACITY = 1_048_576
_LIMIT_SECONDS = 60


def default_folder() -> Path | None:
    """The folder of the problems: TINYTRAIN_MINIMALLOC, or the one beside the repository; None without."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "minimalloc"
    folder = Path(os.environ.get("TINYTRAIN_MINIMALLOC", beside))
    return folder if any(folder.glob("*.csv")) else None


def measure(path: Path, improve: bool, report: Report) -> None:
    """Plan the problem of one file: first into its capacity, then (unless told not to) without one."""
    name, capacity = path.name.split(".")[0], int(path.name.split(".")[1])
    with report.attempt(f"{name} is placed", f"<= {capacity:,} bytes"):
        problem = MemoryProblem.from_csv(path.read_text(), capacity)
        start = time.perf_counter()
        fitted = plan_memory(problem, effort=Effort(improve=0))
        seconds = time.perf_counter() - start
        validate_plan(problem, fitted)
        row = {
            "problem": name,
            "buffers": len(problem.buffers),
            "capacity_bytes": capacity,
            "lower_bound_bytes": fitted.lower_bound,
            "fitted_bytes": fitted.peak,
            "fitted_seconds": round(seconds, 3),
        }
        report.check(
            f"{name} is placed", f"<= {capacity:,} bytes", f"{fitted.peak:,} bytes", fitted.peak <= capacity
        )
        report.at_most(f"{name}, time to place", _LIMIT_SECONDS, seconds, "s")
        if improve:
            start = time.perf_counter()
            least = plan_memory(problem)
            row |= {"least_bytes": least.peak, "least_seconds": round(time.perf_counter() - start, 3)}
            validate_plan(problem, least)
        report.rows.append(row)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every problem was placed in time."""
    made = parser("minimalloc", __doc__)
    made.add_argument("--data", type=Path, default=default_folder(), metavar="DIR", help="folder of *.csv")
    made.add_argument("--fit-only", action="store_true", help="do not look for less than the capacity")
    options = parse(made, argv)
    report = Report(options)
    files = sorted(options.data.glob("*.*.csv")) if options.data else []
    report.check("problems found", ">= 1", len(files), bool(files))
    for path in files:
        measure(path, not options.fit_only, report)
    columns = list(report.rows[0]) if report.rows else []
    print_table("Hard buffer-allocation problems", columns, [list(row.values()) for row in report.rows])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
