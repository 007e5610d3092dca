"""Instructions per multiply-accumulate of the backbones' kernels on a board: as written, with the default rules, tuned.

Each kernel's result is compared with the unscheduled kernel compiled for this machine. On an emulated board the
figures are exact counts of executed instructions; on a real one they are cycles.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tvm
from tvm import tirx

from benchmarks.common import Report, parse, parser, print_table
from benchmarks.kernel_workloads import DIRECTIONS, NETWORKS, Workload, workloads
from tvm_tinytrain.emit.kernel_set import Argument, KernelSet, emit_kernel_set
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.micro.session import Session
from tvm_tinytrain.passes.kernels.builder import kernel_spec
from tvm_tinytrain.passes.lower_kernels import LowerKernels
from tvm_tinytrain.schedules import OWN_CHOICE, RULES, Rule, ScheduleKernels
from tvm_tinytrain.schedules.tiles import best_tile
from tvm_tinytrain.schedules.vectors import packed_lanes
from tvm_tinytrain.targets.boards import get_board
from tvm_tinytrain.targets.target import Target

ASKED = {"pointwise": 1.75, "depthwise": 2.3, "dense": 2.0}
"""Instructions per multiply-accumulate, geometric mean, on the emulated Cortex-M7 in float32."""
TOLERANCE = 1e-5
BATCH = 40
"""Kernels in one firmware image."""
LIBRARY = "kernels"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code."""
    options = parse(_parser(), argv)
    report = Report(options)
    board = get_board(options.board)
    found = [w for w in workloads(options.network) if options.only in w.name]
    variants: dict[str, Sequence[Rule]] = {"default": OWN_CHOICE, "tuned": RULES}
    if not options.skip_unscheduled:
        variants = {"unscheduled": (), **variants}
    rows = {
        w.name: {"kernel": w.name, "group": w.group, "direction": w.direction, "macs": w.macs} for w in found
    }
    for work in found:
        rows[work.name]["multiword_saving_per_mac"] = multiword_saving(work)
    for variant, rules in variants.items():
        for start in range(0, len(found), BATCH):
            batch = found[start : start + BATCH]
            for name, (ticks, error) in measure(batch, rules, options.board, board.target).items():
                rows[name][f"{variant}_instructions"] = ticks
                rows[name][f"{variant}_error"] = error
            print(f"{variant}: {min(start + BATCH, len(found))} of {len(found)} kernels", file=sys.stderr)
    report.rows += rows.values()
    _check(report, list(rows.values()), list(variants))
    _print(list(rows.values()), list(variants), scalar=packed_lanes(board.target.to_tvm()) == 1)
    return report.finish()


def _parser() -> argparse.ArgumentParser:
    made = parser("kernels", __doc__)
    made.add_argument("--board", default="mps2-an500", help="board to measure on (default: %(default)s)")
    made.add_argument(
        "--network",
        nargs="+",
        choices=list(NETWORKS),
        default=list(NETWORKS),
        help="backbones to take kernels from",
    )
    made.add_argument("--only", default="", metavar="TEXT", help="only kernels whose name contains this")
    made.add_argument(
        "--skip-unscheduled", action="store_true", help="leave out the kernels without a schedule"
    )
    return made


def measure(
    batch: Sequence[Workload], rules: Sequence[Rule], board: str, target: Target
) -> dict[str, tuple[int, float]]:
    """Ticks and relative error of each kernel under ``rules`` on a board, by the kernel's name."""
    kernels = {w.name: w.kernel for w in batch}
    minmax = "minmax" in target.core.features
    made = emit_kernel_set(LIBRARY, lower(kernels, rules, target), minmax=minmax)
    plain = emit_kernel_set(LIBRARY, lower(kernels, (), target))
    found = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        InProcess(plain) as host,
        Session(made, board, build_dir=Path(folder)) as session,
    ):
        for work in batch:
            values = arguments(made, work)
            for name, value in values.items():
                host.write(name, value)
                session.write(name, value)
            host.call(work.name)
            ticks = session.time(work.name)
            found[work.name] = (ticks, _error(host, session, made.arguments[work.name]))
    return found


def lower(
    kernels: dict[str, tirx.PrimFunc], rules: Sequence[Rule], target: Target
) -> dict[str, tirx.PrimFunc]:
    """The kernels scheduled by ``rules`` and lowered, by name."""
    mod = tvm.IRModule({name: func.without_attr("global_symbol") for name, func in kernels.items()})
    mod = LowerKernels(target.to_tvm())(ScheduleKernels(target.to_tvm(), rules)(mod))
    return {gv.name_hint: func for gv, func in mod.functions.items()}


def arguments(library: KernelSet, work: Workload) -> dict[str, np.ndarray]:
    """Random values for all arguments of a kernel; channel lists ascend, with gaps."""
    rng = np.random.default_rng(0)
    values = {}
    for arg in library.arguments[work.name]:
        if arg.dtype == "int32":
            size = kernel_spec(work.kernel)["out_channels"]
            values[arg.tensor] = np.sort(rng.permutation(size)[: arg.shape[0]]).astype(np.int32)
        else:
            values[arg.tensor] = rng.standard_normal(arg.shape).astype(np.float32)
    return values


def multiword_saving(work: Workload) -> float:
    """Instructions per multiply-accumulate that loads of several words would save, 0 where they do not apply.

    For the tile that the rule chooses: one VLDM instead of a load for each column and one for each row, whose weights would have to be
    packed. It holds for 1×1 convolutions forward and dX, where neighbouring pixels lie side by side.
    """
    if work.group != "pointwise" or work.direction == "dW" or not work.name.startswith("pointwise"):
        return 0.0
    spec = kernel_spec(work.kernel)
    sizes = [spec["out_channels"], spec["in_channels"]]
    rows, steps = sizes if work.direction == "forward" else reversed(sizes)
    high, wide = best_tile(rows, spec["height"] * spec["width"], steps)
    return (high + wide - 2) / (high * wide)


def _error(host: InProcess, session: Session, args: tuple[Argument, ...]) -> float:
    """The largest difference of what the kernel wrote, relative to the largest value."""
    worst = 0.0
    for arg in args:
        if arg.role == "in":
            continue
        want, have = host.read(arg.tensor), np.asarray(session.read(arg.tensor))
        worst = max(worst, float(np.abs(want - have).max()) / max(1.0, float(np.abs(want).max())))
    return worst


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _check(report: Report, rows: list[dict[str, object]], variants: list[str]) -> None:
    best = variants[-1]
    for group, limit in ASKED.items():
        for direction in DIRECTIONS:
            some = [r for r in rows if (r["group"], r["direction"]) == (group, direction)]
            if some:
                mean = geometric_mean([_per_mac(r, best) for r in some])
                report.at_most(f"{group} {direction}, {best}, {len(some)} kernels", limit, mean, "per MAC")
    worst = max(float(str(r[f"{v}_error"])) for r in rows for v in variants)
    report.at_most("largest relative error", TOLERANCE, worst)
    if "unscheduled" in variants:
        slower = [r["kernel"] for r in rows if _per_mac(r, best) > _per_mac(r, "unscheduled")]
        report.equal("kernels above the unscheduled one", "none", ", ".join(map(str, slower)) or "none")


def _per_mac(row: dict[str, object], variant: str) -> float:
    return int(str(row[f"{variant}_instructions"])) / int(str(row["macs"]))


def _print(rows: list[dict[str, object]], variants: list[str], *, scalar: bool) -> None:
    """``scalar``: the core has no vectors of floats, for which loads of several words were counted."""
    cells = [[r["kernel"], r["macs"], *(round(_per_mac(r, v), 3) for v in variants)] for r in rows]
    print_table("Instructions per multiply-accumulate", ["kernel", "MACs", *variants], cells)
    best = variants[-1]
    for direction in DIRECTIONS[:2]:
        some = [r for r in rows if r["direction"] == direction and r["multiword_saving_per_mac"]]
        if some and scalar:
            now = geometric_mean([_per_mac(r, best) for r in some])
            then = geometric_mean(
                [_per_mac(r, best) - float(str(r["multiword_saving_per_mac"])) for r in some]
            )
            print(
                f"1×1 {direction}: {now:.3f} per MAC; with loads of several words about {then:.3f} (counted, not built: docs/tuning.md)"
            )


if __name__ == "__main__":
    sys.exit(main())
