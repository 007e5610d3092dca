"""What looking a memory plan up by depth costs: random selections, planned as the device looks them up and by the planner alone.

    python -m benchmarks.depth_plans --json build/depth_plans.json

A task-adaptive library takes the plan in which every candidate behind the earliest selected one is trained. The same selection as a
fixed library is planned for itself. Both need the trained rows.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean
from typing import Any

import numpy as np
import torch

import tvm_tinytrain as tt
from benchmarks.common import Report, parse, parser, print_table
from tvm_tinytrain.models import mcunet

ALLOWED = 1.15
"""Asked of the mean: bytes by the table over bytes by the planner."""


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    made = parser("depth_plans", __doc__)
    made.add_argument("--selections", type=int, default=8)
    made.add_argument("--size", type=int, default=64, help="height and width of the images (default: 64)")
    made.add_argument("--chance", type=float, default=0.35, help="of each candidate layer to be trained")
    options = parse(made, argv)
    report = Report(options)
    table = build(options, update=tt.TaskAdaptive()).metadata["adaptive"]
    rng = np.random.default_rng(0)
    for _ in range(options.selections):
        chosen = draw(rng, table["candidates"], options.chance)
        exact = build(options, update=tt.UpdatePlan.from_channels(chosen), accumulate=True)
        by_table = table_bytes(table, chosen)
        planned = exact.metadata["memory"]["arena_bytes"]
        report.rows.append(
            {
                "layers": sorted(chosen),
                "table_bytes": by_table,
                "planner_bytes": planned,
                "ratio": by_table / planned,
            }
        )
    print_table(
        f"MCUNet {options.size}×{options.size}, Adam: bytes of a selection",
        ("trained layers", "by the table", "by the planner", "ratio"),
        [(len(r["layers"]), r["table_bytes"], r["planner_bytes"], r["ratio"]) for r in report.rows],
    )
    report.at_most("mean of table / planner", ALLOWED, mean(r["ratio"] for r in report.rows))
    report.at_least("smallest of table / planner", 1.0, min(r["ratio"] for r in report.rows))
    return report.finish()


def build(options: argparse.Namespace, **more: Any) -> tt.TrainModule:
    """The network for a Cortex-M7, with Adam."""
    torch.manual_seed(0)
    network = mcunet(num_classes=5, fused=True).eval()
    example = (torch.zeros(1, 3, options.size, options.size),)
    return tt.build(network, "c -mcpu=cortex-m7", example_inputs=example, optimizer=tt.Adam(1e-3), **more)


def draw(rng: np.random.Generator, candidates: list[dict[str, int]], chance: float) -> dict[int, list[int]]:
    """Each candidate with this chance, a quarter of its channels; never nothing."""
    while True:
        chosen = {
            c["layer"]: sorted(rng.choice(c["channels"], max(1, c["channels"] // 4), replace=False).tolist())
            for c in candidates
            if rng.random() < chance
        }
        if chosen:
            return chosen


def table_bytes(table: dict[str, Any], chosen: dict[int, list[int]]) -> int:
    """Activations by depth, and the trained rows."""
    candidates = table["candidates"]
    depth = next(i for i, c in enumerate(candidates) if c["layer"] in chosen)
    rows = sum(c["channel_bytes"] * len(chosen.get(c["layer"], ())) for c in candidates)
    return int(table["activation_bytes"][depth] + rows)


if __name__ == "__main__":
    sys.exit(main())
