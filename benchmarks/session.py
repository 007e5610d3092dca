"""A whole task-adaptive session on an emulated board: Fisher pass, selection on the device, sparse training, prediction.

    python -m benchmarks.session --board mps2-an500 --network mcunet --json build/session.json

Counts executed instructions of every call. The frozen prefix's result of each sample is kept in the arena's spare bytes, so that later
iterations run the tail only. The cost of the same session with FullTrain is that of one measured step times the number of steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

import tvm_tinytrain as tt
from benchmarks.common import Report, parse, parser, print_table
from tvm_tinytrain.micro import Session
from tvm_tinytrain.models import mcunet, mobilenet_v2, proxyless_nas

NETWORKS: dict[str, Callable[..., torch.nn.Module]] = {
    "mcunet": mcunet,
    "mobilenet_v2": mobilenet_v2,
    "proxyless_nas": proxyless_nas,
}
CLASSES = 5


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    made = parser("session", __doc__)
    made.add_argument("--board", default="mps2-an500")
    made.add_argument("--network", choices=sorted(NETWORKS), default="mcunet")
    made.add_argument("--size", type=int, default=128, help="height and width of the images (default: 128)")
    made.add_argument("--samples", type=int, default=25)
    made.add_argument("--iterations", type=int, default=40)
    made.add_argument("--criterion", default="tinytrain", help="tinytrain (default), exact, …")
    made.add_argument("--memory", default="3500KB", help="arena, cache included (default: 3500KB)")
    made.add_argument(
        "--compute", type=float, default=0.15, help="share of FullTrain's backward pass (default: 0.15)"
    )
    options = parse(made, argv)
    report = Report(options)
    network, images, labels = make_task(options)
    console = Console()
    adaptive = run_adaptive(options, report, network, images, labels, console)
    full = full_train_step(options, network, images, labels, console)
    report.rows.append({"library": "FullTrain", **full})
    steps = options.samples * options.iterations
    whole = full["accumulate_instructions"] * steps + full["apply_instructions"] * options.iterations
    fisher_pass = adaptive["fisher_instructions"] * options.samples
    print_table(
        f"{options.network} {options.size}×{options.size}, {options.board}, {options.samples} samples, {options.iterations} iterations",
        ("what", "instructions"),
        [
            ("Fisher pass, one sample", adaptive["fisher_instructions"]),
            ("score + select + plan", adaptive["select_instructions"]),
            ("training step, first iteration", adaptive["first_step_instructions"]),
            ("training step from the cache", adaptive["cached_step_instructions"]),
            ("optimizer", adaptive["apply_instructions"]),
            ("prediction", adaptive["predict_instructions"]),
            ("whole session", adaptive["session_instructions"]),
            ("FullTrain step", full["accumulate_instructions"]),
            ("whole session with FullTrain", whole),
        ],
    )
    report.at_most("select / Fisher pass", 0.01, adaptive["select_instructions"] / fisher_pass)
    report.at_most("session / FullTrain session", 0.2, adaptive["session_instructions"] / whole)
    report.at_most(
        "arena touched / planned", 1.0, adaptive["arena_high_water_bytes"] / adaptive["arena_bytes"]
    )
    return report.finish()


def make_task(options: argparse.Namespace) -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    """A fused backbone with a five-class head and random images: the count of instructions hardly depends on either."""
    torch.manual_seed(0)
    network = NETWORKS[options.network](num_classes=CLASSES, fused=True).eval()
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.samples, 3, options.size, options.size)).astype(np.float32)
    return network, images, np.arange(options.samples, dtype=np.int32) % CLASSES


def build(options: argparse.Namespace, network: torch.nn.Module, **more: Any) -> tt.TrainModule:
    """The network for the board's core, with Adam."""
    example = (torch.zeros(1, 3, options.size, options.size),)
    return tt.build(
        network, "c -mcpu=cortex-m7", example_inputs=example, optimizer=tt.Adam(1e-3), name="session", **more
    )


def run_adaptive(
    options: argparse.Namespace,
    report: Report,
    network: torch.nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    console: Console,
) -> dict[str, Any]:
    """The whole session, every call counted."""
    module = build(
        options,
        network,
        update=tt.TaskAdaptive(criterion=options.criterion),
        budget=tt.Budget(memory=options.memory, compute=options.compute),
    )
    counts: dict[str, list[int]] = {}
    with Session(module, board=options.board) as session, Progress(console=console) as progress:

        def call(entry: str, index: int | None, *, image: bool) -> int:
            if index is not None:
                session.write("label", labels[index : index + 1])
                session.write("slot", np.array([index], np.int32))
            if image and index is not None:
                session.write(input_name(module), images[index : index + 1])
            counts.setdefault(entry, []).append(int(session.time(entry)))
            return counts[entry][-1]

        call("fisher_begin", None, image=False)
        task = progress.add_task("Fisher", total=options.samples)
        for index in range(options.samples):
            call("fisher", index, image=True)
            progress.advance(task)
        call("select", None, image=False)
        plan = session.read("plan")
        slots = cache_slots(module, plan)
        task = progress.add_task("training", total=options.iterations * options.samples)
        for iteration in range(options.iterations):
            for index in range(options.samples):
                kept = index < slots
                entry = (
                    "accumulate"
                    if not kept
                    else "accumulate_store"
                    if iteration == 0
                    else "accumulate_cached"
                )
                call(entry, index, image=entry != "accumulate_cached")
                progress.advance(task)
            call("apply", None, image=False)
        call("predict", 0, image=True)
        memory = session.memory()
    rows = plan[3 : 3 + len(module.metadata["adaptive"]["candidates"])]
    chosen = {
        c["layer"]: int(k) for c, k in zip(module.metadata["adaptive"]["candidates"], rows, strict=True) if k
    }
    result = {
        "library": "TaskAdaptive",
        "plan_channels_by_layer": chosen,
        "cache_slots": slots,
        "fisher_instructions": max(counts["fisher"]),
        "select_instructions": counts["select"][0],
        "first_step_instructions": (counts.get("accumulate_store") or counts["accumulate"])[0],
        "cached_step_instructions": max(counts.get("accumulate_cached") or counts["accumulate"]),
        "apply_instructions": max(counts["apply"]),
        "predict_instructions": counts["predict"][0],
        "session_instructions": sum(sum(v) for k, v in counts.items() if k != "predict"),
        **memory,
    }
    report.rows.append(result)
    return result


def cache_slots(module: tt.TrainModule, plan: np.ndarray) -> int:
    """Samples whose frozen prefix fits behind the trained rows."""
    return int(plan[module.metadata["adaptive"]["plan_words"]["cache_slots"]])


def full_train_step(
    options: argparse.Namespace,
    network: torch.nn.Module,
    images: np.ndarray,
    labels: np.ndarray,
    console: Console,
) -> dict[str, Any]:
    """One accumulated sample and one optimizer step of FullTrain on the same board."""
    with console.status("FullTrain on the same board"):
        module = build(options, network, update=tt.FullTrain(), accumulate=True)
        with Session(module, board=options.board) as session:
            session.write(input_name(module), images[:1])
            session.write("label", labels[:1])
            step = int(session.time("accumulate"))
            return {
                "accumulate_instructions": step,
                "apply_instructions": int(session.time("apply")),
                **session.memory(),
            }


def input_name(module: tt.TrainModule) -> str:
    """The tensor that takes the image."""
    return next(t["name"] for t in module.metadata["tensors"] if t["role"] == "input")


if __name__ == "__main__":
    sys.exit(main())
