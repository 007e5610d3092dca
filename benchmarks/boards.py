"""One adaptation on every board: the same plan, the same predictions, the same parameters; and what does not fit, by how many bytes.

    python -m benchmarks.boards --json build/boards.json

A network is built once into a task-adaptive library. It adapts to a few samples on this machine and on every emulated board:
Fisher pass, selection on the device, training driven from the host. Real boards are linked only: nothing here ran on one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console

import tvm_tinytrain as tt
from benchmarks.common import Report, parse, parser, print_table
from benchmarks.networks import zoo
from tvm_tinytrain.errors import ToolMissingError
from tvm_tinytrain.micro import GeneratedProject, Session, generate_project
from tvm_tinytrain.micro.toolchain import MemoryOverflowError
from tvm_tinytrain.targets.boards import BOARDS, Board, get_board
from tvm_tinytrain.targets.estimate import estimate

WAYS = 5
CANDIDATES = {"mcunet": 18}
"""Last layers that may be trained; 3 of any other network, whose maps are large."""


@dataclass(frozen=True)
class Task:
    """A library, its support set (images, labels) and images to predict."""

    module: tt.TrainModule
    images: np.ndarray
    labels: np.ndarray
    queries: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What an adaptation left: plan, trained rows by tensor, predicted classes, embeddings of the queries."""

    plan: str
    rows: dict[str, np.ndarray]
    classes: np.ndarray
    embeddings: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    made = parser("boards", __doc__)
    made.add_argument("--networks", default="ds_cnn,mcunet", help="small first: it has to fit every board")
    made.add_argument("--boards", default=",".join(BOARDS), help="comma-separated (default: all)")
    made.add_argument(
        "--shots", type=int, default=1, help="support samples of each of 5 classes (default: 1)"
    )
    made.add_argument("--iterations", type=int, default=3)
    made.add_argument("--memory", default="150KB", help="SRAM budget of the arena (default: 150KB)")
    options = parse(made, argv)
    report = Report(options)
    boards = [get_board(name) for name in options.boards.split(",")]
    console = Console(stderr=True)
    for position, name in enumerate(options.networks.split(",")):
        with console.status(f"{name}: building"):
            task = make_task(name, options)
        expected, _ = adapt_on(task, get_board("host"), options)
        for board, kernels in ((b, k) for b in boards for k in kernels_of(b)):
            label = f"{name} on {board.name}, kernels by {kernels}"
            with console.status(label), report.attempt(label):
                used = task if kernels == "C" else make_task(name, options, native_target(board))
                row = {"network": name, "kernels": kernels, **run_board(used, board, options, expected)}
                report.rows.append(row)
                check(report, row, label, must_fit=position == 0)
        report.save()
    show(report.rows)
    return report.finish()


def kernels_of(board: Board) -> tuple[str, ...]:
    """Who compiles the kernels: GCC from C everywhere; for the emulated Cortex-A boards TVM's LLVM too."""
    return ("C", "LLVM") if board.runner == "qemu-user" else ("C",)


def native_target(board: Board) -> str:
    """The target of a board's core for LLVM."""
    return f"llvm -mtriple={board.target.core.triple} -mcpu={board.target.core.name}"


def make_task(name: str, options: argparse.Namespace, target: str = "c -mcpu=cortex-m7") -> Task:
    """The library and the samples: the pre-trained MCUNet with handwritten digits, or a network of the zoo with noisy patterns."""
    count = WAYS * options.shots
    labels = np.arange(count) % WAYS
    if name == "mcunet":
        from examples.demo_data import load_pretrained, load_support_query

        network: torch.nn.Module = load_pretrained().eval()
        support, digits, query, _ = load_support_query(0, shots=options.shots, queries=10)
        kept = digits < WAYS
        images, labels, queries = support[kept], digits[kept], query
    else:
        found = zoo()[name]
        network = found.make()
        rng = np.random.default_rng(0)
        patterns = rng.normal(size=(WAYS, *found.input_shape[1:]))
        images = (patterns[labels] + rng.normal(size=(count, *patterns.shape[1:]))).astype(np.float32)
        queries = (patterns[np.arange(10) % WAYS] + rng.normal(size=(10, *patterns.shape[1:]))).astype(
            np.float32
        )
    module = tt.build(
        network,
        target,
        example_inputs=(torch.zeros(1, *images.shape[1:]),),
        loss=tt.Prototypical(),
        optimizer=tt.Adam(1e-3),
        accumulate=True,
        update=tt.TaskAdaptive(candidates=CANDIDATES.get(name, 3)),
        budget=tt.Budget(memory=options.memory, compute=0.15),
        name="boards",
    )
    return Task(module, images, labels, queries)


def adapt_on(
    task: Task, board: Board, options: argparse.Namespace, project: GeneratedProject | None = None
) -> tuple[Outcome, dict[str, Any]]:
    """Adapts on a board; returns what it left and what it took."""
    with Session(project or task.module, board, timeout_s=600) as session:
        result = session.adapt(task.images, task.labels, iterations=options.iterations)
        assert result.plan is not None
        embeddings = np.stack([session.predict(image[None]).reshape(-1) for image in task.queries])
        rows = session.trained_rows()
        outcome = Outcome(result.plan.digest, rows, result.classifier.classify(embeddings), embeddings)
        measured: dict[str, Any] = {**session.memory(), "loss_last": result.losses[-1]}
        if session.time_unit == "instructions":
            measured["predict_instructions"] = session.time("predict")
            measured["accumulate_instructions"] = session.time("accumulate")
    return outcome, measured


def run_board(task: Task, board: Board, options: argparse.Namespace, expected: Outcome) -> dict[str, Any]:
    """Builds for a board, and adapts there unless it is a real one."""
    row: dict[str, Any] = {"board": board.name, "core": board.target.core.name, "note": board.note}
    with tempfile.TemporaryDirectory(prefix="tinytrain-boards-") as folder:
        project = generate_project(task.module, board, folder)
        try:
            project.build()
        except MemoryOverflowError as error:
            return {**row, "fits": False, "memory": error.memory, "bytes_over": error.bytes_over}
        except ToolMissingError as error:
            return {**row, "missing": str(error)}
        sizes = project.sizes()
        row |= {"fits": True, "flash_bytes": sizes.flash_bytes, "sram_bytes": sizes.sram_bytes,
                "external_bytes": sizes.external_bytes}  # fmt: skip
        row |= {
            f"{m.name.lower()}_limit_bytes": m.bytes
            for m in board.chip.memories
            if m.kind in ("flash", "sram")
        }
        if board.hardware:
            return row
        found, measured = adapt_on(task, board, options, project)
    row |= measured
    row |= {
        "plan_digest": found.plan,
        "plan_is_the_hosts": found.plan == expected.plan,
        "trained_rows": sum(len(r) for r in found.rows.values()),
        "predictions_differ": int((found.classes != expected.classes).sum()),
        "embedding_error": relative(found.embeddings, expected.embeddings),
        "parameter_error": max(
            (relative(found.rows.get(n, r[:0]), r) for n, r in expected.rows.items() if r.size),
            default=np.inf,
        ),
    }
    return row


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """max |Δ| / max |expected|; infinite where the shapes differ."""
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got.astype(np.float64) - expected).max() / max(float(np.abs(expected).max()), 1e-30))


def check(report: Report, row: dict[str, Any], name: str, *, must_fit: bool) -> None:
    """What is asked of a board."""
    if "missing" in row:
        report.check(f"{name}: tools", "installed", row["missing"], False)
        return
    if not row["fits"]:
        told = f"{row['memory']}: {row['bytes_over']:,} bytes too many"
        report.check(
            f"{name}: says what does not fit", "fits" if must_fit else "bytes over", told, not must_fit
        )
        return
    if "plan_digest" not in row:
        report.check(
            f"{name}: links within its memory",
            "fits",
            f"{row['flash_bytes']:,} B flash, {row['sram_bytes']:,} B SRAM",
            True,
        )
        return
    report.check(f"{name}: plan", "the host's", row["plan_digest"], row["plan_is_the_hosts"])
    report.equal(f"{name}: predictions that differ", 0, row["predictions_differ"])
    report.at_most(f"{name}: parameters", 1e-5, row["parameter_error"], "of the largest")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table for people."""
    columns = ("board", "core", "kernels", "", "flash B", "SRAM B", "stack B", "parameter error", "predictions that differ",
               "instructions of accumulate", "seconds, estimated")  # fmt: skip
    for network in dict.fromkeys(row["network"] for row in rows):
        print_table(
            f"{network}: one adaptation by board",
            columns,
            [_cells(r) for r in rows if r["network"] == network],
        )


def _cells(row: dict[str, Any]) -> list[Any]:
    board, count = get_board(row["board"]), row.get("accumulate_instructions")
    if "missing" in row:
        status = "tool missing"
    elif row["fits"]:
        status = "ran" if "plan_digest" in row else "linked"
    else:
        status = f"{row['memory']} {row['bytes_over']:,} B too small"
    seconds = None
    if count is not None and board.chip.clock_hz:
        seconds = round(estimate(board, count, board).seconds, 4)
    known = ("flash_bytes", "sram_bytes", "stack_bytes", "parameter_error", "predictions_differ")
    cells = [row["board"], row["core"], row["kernels"], status, *(row.get(key) for key in known)]
    return [*cells, count, seconds]


if __name__ == "__main__":
    sys.exit(main())
