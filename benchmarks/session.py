"""A whole task-adaptive session on an emulated board, by a firmware that needs no host: Fisher pass, selection, training, prediction.

    python -m benchmarks.session --board mps2-an500 --network mcunet --json build/session.json

The samples are linked beside the library; the board adapts when it starts, and the host reads afterwards what it did. Executed
instructions of every call are counted, and what runs between the calls (samples that are made float, the session's own code) counts
too. The cost of the same session with FullTrain is that of one measured step times the number of steps, without anything between them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.console import Console

import tvm_tinytrain as tt
from benchmarks.common import Report, parse, parser, print_table
from tvm_tinytrain.adaptation import DeviceDraws, DiffAugment
from tvm_tinytrain.micro import Session, Standalone, StandaloneResult, generate_project, read_result
from tvm_tinytrain.models import mcunet, mobilenet_v2, proxyless_nas

NETWORKS: dict[str, Callable[..., torch.nn.Module]] = {
    "mcunet": mcunet,
    "mobilenet_v2": mobilenet_v2,
    "proxyless_nas": proxyless_nas,
}
LOSSES: dict[str, tt.CrossEntropy | tt.Prototypical] = {
    "cross-entropy": tt.CrossEntropy(),
    "prototypical": tt.Prototypical(),
}
CLASSES = 5
SCALE, OFFSET = 1 / 64, -2.0
_FIRST = ("accumulate_store", "predict_store", "accumulate")
_CACHED = ("accumulate_cached", "accumulate")


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    made = parser("session", __doc__)
    made.add_argument("--board", default="mps2-an500")
    made.add_argument("--network", choices=sorted(NETWORKS), default="mcunet")
    made.add_argument("--size", type=int, default=128, help="height and width of the images (default: 128)")
    made.add_argument("--samples", type=int, default=25)
    made.add_argument("--queries", type=int, default=5)
    made.add_argument("--iterations", type=int, default=40)
    made.add_argument("--loss", choices=sorted(LOSSES), default="cross-entropy")
    made.add_argument("--criterion", default="tinytrain", help="tinytrain (default), exact, …")
    made.add_argument("--cache", choices=("float32", "float16", "int8"), default="float32")
    made.add_argument("--memory", default="3500KB", help="arena, cache included (default: 3500KB)")
    made.add_argument(
        "--compute", type=float, default=0.15, help="share of FullTrain's backward pass (default: 0.15)"
    )
    made.add_argument(
        "--augment",
        type=int,
        metavar="SEED",
        help="train on augmented pseudo-queries, which no cache holds (default: on the samples)",
    )
    options = parse(made, argv)
    report = Report(options)
    network, task = make_task(options)
    console = Console()
    adaptive = run_adaptive(options, report, network, task, console)
    full = full_train_step(options, network, task, console)
    report.rows.append({"library": "FullTrain", **full})
    whole = full_session(options, full)
    print_figures(options, adaptive, full, whole)
    fisher_pass = adaptive["fisher_instructions"] * options.samples
    report.at_most("select / Fisher pass", 0.01, adaptive["select_instructions"] / fisher_pass)
    asked = 0.2 if options.augment is None else 0.5  # without a cache every forward pass is whole
    report.at_most("session / FullTrain session", asked, adaptive["session_instructions"] / whole)
    report.at_most(
        "arena touched / planned", 1.0, adaptive["arena_high_water_bytes"] / adaptive["arena_bytes"]
    )
    report.at_most("layers that the host-driven plan trains otherwise", 0, adaptive["plan_differences"])
    return report.finish()


def make_task(options: argparse.Namespace) -> tuple[torch.nn.Module, Standalone]:
    """A fused backbone with a five-class head and random images: the count of instructions hardly depends on either."""
    torch.manual_seed(0)
    network = NETWORKS[options.network](num_classes=CLASSES, fused=True).eval()
    rng = np.random.default_rng(0)
    shape = (options.samples + options.queries, 3, options.size, options.size)
    values = np.clip(rng.normal(size=shape) / SCALE + 128, 0, 255).astype(np.uint8)
    labels = np.arange(options.samples, dtype=np.int32) % CLASSES
    embedding = CLASSES if options.loss == "prototypical" else 0
    task = Standalone(values, labels, options.iterations, SCALE, OFFSET, 1e-3, tt.Prototypical(), embedding)
    if options.augment is not None:
        task = replace(task, augment=DiffAugment(), seed=options.augment)
    return network, task


def images(task: Standalone) -> np.ndarray:
    """The samples as the board makes them: float32[n, 3, height, width]."""
    return np.float32(SCALE) * task.samples.astype(np.float32) + np.float32(OFFSET)


def build(options: argparse.Namespace, network: torch.nn.Module, **more: Any) -> tt.TrainModule:
    """The network for the board's core, with Adam."""
    return tt.build(
        network, "c -mcpu=cortex-m7", example_inputs=(torch.zeros(1, 3, options.size, options.size),), optimizer=tt.Adam(1e-3),
        loss=LOSSES[options.loss], name="adapted", **more,
    )  # fmt: skip


def run_adaptive(
    options: argparse.Namespace,
    report: Report,
    network: torch.nn.Module,
    task: Standalone,
    console: Console,
) -> dict[str, Any]:
    """The whole session by the board alone, every call counted; then the plan that a host would have had it make."""
    update = tt.TaskAdaptive(
        criterion=options.criterion, cached_samples=options.samples, cache_format=options.cache
    )
    module = build(
        options, network, update=update, budget=tt.Budget(memory=options.memory, compute=options.compute)
    )
    with tempfile.TemporaryDirectory() as folder, console.status("the board adapts by itself (some minutes)"):
        project = generate_project(module, options.board, folder, standalone=task).build()
        with Session(project, start_s=1800.0) as session:
            said = read_result(session.console(), session.entries)
            log, memory, plan = session.instruction_log(), session.memory(), session.read("plan")
        with Session(generate_project(module, options.board, folder).build()) as session:
            expected = host_plan(session, module, task)
    if said.status:
        raise SystemExit(f"the board's session ended with status {said.status}")
    block = module.metadata["adaptive"]
    words, candidates = block["plan_words"], block["candidates"]
    ends = (words["rows"], words["rows"] + len(candidates))
    rows = plan[ends[0] : ends[1]]
    depth, point = int(plan[words["depth"]]), int(plan[words["cache_point"]])
    slot_bytes = block["cache"]["slot_bytes"][depth][point] if depth < len(candidates) else 0
    result = {
        "library": "TaskAdaptive",
        "plan_channels_by_layer": {
            c["layer"]: [int(k), c["channels"]] for c, k in zip(candidates, rows, strict=True) if k
        },
        "plan_differences": int((rows != expected[ends[0] : ends[1]]).sum()),
        "labels": list(said.labels),
        "first_loss": said.first_loss,
        "last_loss": said.last_loss,
        **counted(said, log),
        **memory,
        "activation_bytes": block["activation_bytes"][depth],
        "trained_rows_bytes": int(plan[words["end"]]) - block["activation_bytes"][depth],
        "cache_slots": said.cached,
        "cache_slot_bytes": slot_bytes,
        "session_scratch_bytes": task.scratch_bytes,
        "checkpoint_bytes": said.checkpoint_bytes,
    }
    report.rows.append(result)
    return result


def counted(said: StandaloneResult, log: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Instructions by entry, and of the session: from its first call to its last step, with what runs between the calls."""
    calls = list(zip(["init", *said.entries], log, strict=True))
    by_entry: dict[str, list[int]] = {}
    for entry, (_, inside) in calls:
        by_entry.setdefault(entry, []).append(inside)
    last = max(i for i, (entry, _) in enumerate(calls) if entry in ("apply", "select"))
    within = calls[1 : last + 1]

    def largest(*entries: str) -> int:
        return max(next((by_entry[e] for e in entries if e in by_entry), [0]))

    return {
        "fisher_instructions": largest("fisher"),
        "select_instructions": largest("select"),
        "first_step_instructions": largest(*_FIRST),
        "cached_step_instructions": largest(*_CACHED),
        "cached_embedding_instructions": largest("predict_cached"),
        "apply_instructions": largest("apply"),
        "predict_instructions": by_entry["predict"][-1] if "predict" in by_entry else 0,
        "between_calls_instructions": sum(before for _, (before, _) in within[1:]),
        "session_instructions": sum(before + inside for _, (before, inside) in within[1:]) + within[0][1][1],
    }


def host_plan(session: Session, module: tt.TrainModule, task: Standalone) -> np.ndarray:
    """The plan of a host-driven Fisher pass and selection over the same samples, augmented alike."""
    support = len(task.labels)
    samples = images(task)[:support]
    queries = samples if task.augment is None else task.augment(samples, DeviceDraws(task.seed))
    if "seed" in session.tensors:
        from tvm_tinytrain.adaptation.protonet import loss_and_gradients

        of_samples, of_queries = (
            np.stack([session.predict(s[None]).reshape(-1) for s in made]) for made in (samples, queries)
        )
        found = loss_and_gradients(of_samples, task.labels, of_queries, task.labels, task.loss)
        seeds = found.queries * support
    session.call("fisher_begin")
    for index in range(support):
        session.write(input_name(module), queries[index : index + 1])
        if "seed" in session.tensors:
            session.write("seed", seeds[index].reshape(session.tensors["seed"].shape))
        else:
            session.write("label", task.labels[index : index + 1])
        session.call("fisher")
    session.call("select")
    return session.read("plan")


def full_train_step(
    options: argparse.Namespace, network: torch.nn.Module, task: Standalone, console: Console
) -> dict[str, Any]:
    """One accumulated sample, one prediction and one optimizer step of FullTrain on the same board."""
    with console.status("FullTrain on the same board"):
        module = build(options, network, update=tt.FullTrain(), accumulate=True)
        with Session(module, board=options.board) as session:
            sample = images(task)[:1]
            session.write(input_name(module), sample)
            embedding = int(session.time("predict"))
            session.write(input_name(module), sample)
            if "label" in session.tensors:
                session.write("label", task.labels[:1])
            step = int(session.time("accumulate"))
            return {
                "accumulate_instructions": step,
                "predict_instructions": embedding,
                "apply_instructions": int(session.time("apply")),
                **session.memory(),
            }


def full_session(options: argparse.Namespace, full: dict[str, Any]) -> int:
    """Instructions of the same session with FullTrain: a loss that couples the samples asks for their embeddings first."""
    sample = full["accumulate_instructions"]
    if options.loss == "prototypical":
        sample += full["predict_instructions"]
        sample *= 1 if options.augment is None else 2  # the samples, and their pseudo-queries
    return int(options.iterations * (options.samples * sample + full["apply_instructions"]))


def print_figures(
    options: argparse.Namespace, adaptive: dict[str, Any], full: dict[str, Any], whole: int
) -> None:
    """The tables: instructions, bytes by pool, the plan."""
    title = (
        f"{options.network} {options.size}×{options.size}, {options.board}, {options.samples} samples, "
        f"{options.iterations} iterations, {options.loss}; the whole session ran on the board without a host"
    )
    lines = [
        ("Fisher pass, one sample", "fisher_instructions"),
        ("score + select + plan", "select_instructions"),
        ("first pass over a sample, kept in the cache", "first_step_instructions"),
        ("training step from the cache", "cached_step_instructions"),
        ("embedding from the cache", "cached_embedding_instructions"),
        ("optimizer", "apply_instructions"),
        ("prediction", "predict_instructions"),
        ("between all calls", "between_calls_instructions"),
        ("whole session", "session_instructions"),
    ]
    rows = [(text, adaptive[key]) for text, key in lines if adaptive[key]]
    rows += [("FullTrain step", full["accumulate_instructions"]), ("whole session with FullTrain", whole)]
    print_table(title, ("what", "instructions"), rows)
    cache = adaptive["cache_slots"] * adaptive["cache_slot_bytes"]
    pools = [
        ("flash", adaptive["flash_bytes"]),
        ("SRAM, with the arena if it fits", adaptive["sram_bytes_linked"]),
        ("external memory, with the arena if not", adaptive["external_bytes_linked"]),
        ("arena", adaptive["arena_bytes"]),
        ("… activations", adaptive["activation_bytes"]),
        ("… trained rows, gradients, optimizer", adaptive["trained_rows_bytes"]),
        (f"… cache, {adaptive['cache_slots']} samples as {options.cache}", cache),
        ("… touched", adaptive["arena_high_water_bytes"]),
        ("session's scratch: prototypes, the sample to augment", adaptive["session_scratch_bytes"]),
        ("stack", adaptive["stack_bytes"]),
        ("checkpoint", adaptive["checkpoint_bytes"]),
    ]
    print_table("Bytes by pool", ("pool", "bytes"), pools)
    plan = [(layer, k, of) for layer, (k, of) in adaptive["plan_channels_by_layer"].items()]
    print_table("The plan that the board made", ("layer", "trained channels", "of"), plan)


def input_name(module: tt.TrainModule) -> str:
    """The tensor that takes the image."""
    return next(t["name"] for t in module.metadata["tensors"] if t["role"] == "input")


if __name__ == "__main__":
    sys.exit(main())
