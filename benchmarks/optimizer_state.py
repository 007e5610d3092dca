"""What Adam's state in fewer bits costs in accuracy: the demo's MCUNet, pre-trained on clothes, learns handwritten digits.

    python -m benchmarks.optimizer_state --json build/optimizer_state.json

For each draw of 100 labelled digits and each format of the moments, the compiled library (in this process; the C is the boards') takes
one step of Adam per sample, five times over, on the demo's channels; then it classifies other digits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

import tvm_tinytrain as tt
from benchmarks.common import Report, parse, parser, print_table
from examples.demo_data import demo_network, demo_plan, load_support_query
from tvm_tinytrain.micro.in_process import InProcess

STATES = ("float32", "bfloat16", "int8")
LOSS_OF_ACCURACY = 0.01
"""Most that the mean accuracy over the draws may fall."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    made = parser("optimizer_state", __doc__)
    made.add_argument("--draws", type=int, default=4, help="support and query sets (default: 4)")
    made.add_argument("--epochs", type=int, default=5, help="passes over the 100 support images (default: 5)")
    made.add_argument("--queries", type=int, default=200, help="images to classify (default: 200)")
    made.add_argument("--lr", type=float, default=1e-3, help="learning rate (default: 0.001)")
    options = parse(made, argv)
    report = Report(options)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("digits", total=len(STATES) * options.draws)
        for state in STATES:
            module = tt.build(
                demo_network(), "host", example_inputs=(torch.zeros(1, 3, 48, 48),), update=demo_plan(),
                optimizer=tt.Adam(options.lr, state=state),
            )  # fmt: skip
            for draw in range(options.draws):
                report.rows.append({"state": state, "draw": draw, **learn(module, options, draw)})
                report.save()
                progress.advance(task)
    columns = ("state", "draw", "state_bytes", "loss_first_epoch", "loss_last_epoch", "accuracy")
    print_table("Digits learnt by steps of Adam", columns, [[row[c] for c in columns] for row in report.rows])
    mean = {s: float(np.mean([r["accuracy"] for r in report.rows if r["state"] == s])) for s in STATES}
    size = {s: next(r["state_bytes"] for r in report.rows if r["state"] == s) for s in STATES}
    for state in STATES[1:]:
        report.at_least(
            f"mean accuracy with {state} moments, float32 has {mean['float32']:.4f}",
            mean["float32"] - LOSS_OF_ACCURACY,
            mean[state],
        )
        limit = {"bfloat16": 0.5, "int8": 0.4}[state]
        report.at_most(f"bytes of {state} moments / float32", limit, size[state] / size["float32"])
    return report.finish()


def learn(module: tt.TrainModule, options: Any, draw: int) -> dict[str, float]:
    """Losses by epoch and the accuracy afterwards."""
    images, labels, queries, truth = load_support_query(100 + draw, queries=options.queries)
    state = [t["bytes"] for t in module.metadata["tensors"] if t["role"] == "state" and t["name"] != "hyper"]
    losses = []
    with InProcess(module) as library:
        for _ in range(options.epochs):
            steps = [library.step(x[None], y) for x, y in zip(images, labels, strict=True)]
            losses.append(float(np.mean(steps)))
        found = np.array([int(library.predict(x[None]).argmax()) for x in queries])
    return {
        "state_bytes": sum(state),
        "loss_first_epoch": losses[0],
        "loss_last_epoch": losses[-1],
        "accuracy": float((found == truth).mean()),
    }


if __name__ == "__main__":
    sys.exit(main())
