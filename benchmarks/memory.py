"""Memory of training: planned, measured on an emulated board, and the least that is possible.

    python -m benchmarks.memory --json build/memory.json

Three backbones × (FullTrain, LastLayer, SparseUpdate, a TinyTrain plan with the paper's number of weights) × (plain, streamed,
streamed + recompute), and a task-adaptive session per backbone on a memory map of 512 KB. "plain" keeps and computes everything as it
stands in the graph; "streamed" takes images as bytes, keeps one-bit masks, works in place and lets blocks stream row by row where that
lowers the peak; "recompute" computes inner tensors of blocks a second time on the way back where that lowers it further. The lower
bound is the largest sum of bytes that live at once. A run that was interrupted goes on from its JSON file with --resume.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

import tvm_tinytrain as tt
from benchmarks.common import Report, parse, parser, print_table
from benchmarks.memory_session import session_row
from tvm_tinytrain.config import Adam, FullTrain, LastLayer, MemoryOptions, SparseUpdate
from tvm_tinytrain.memory.lower_bound import lower_bound_peak
from tvm_tinytrain.memory.picture import bytes_by_kind
from tvm_tinytrain.micro import Session
from tvm_tinytrain.micro.in_process import InProcess
from tvm_tinytrain.models import mcunet, mobilenet_v2, proxyless_nas
from tvm_tinytrain.plan import UpdatePlan

KB = 1024
BACKBONES: dict[str, Callable[..., torch.nn.Module]] = {
    "mcunet": mcunet,
    "mobilenet_v2": mobilenet_v2,
    "proxyless_nas": proxyless_nas,
}
SCHEME = {"mcunet": "mcunet-99kb", "mobilenet_v2": "mbv2-99kb", "proxyless_nas": "proxyless-98kb"}
PAPER_WEIGHTS = {"mcunet": 17_400, "mobilenet_v2": 12_100, "proxyless_nas": 18_400}
SESSION_LIMIT = {"mcunet": 450 * KB, "mobilenet_v2": 450 * KB, "proxyless_nas": 400 * KB}
FORWARD_LIMIT = 230 * KB
EXTRA_MACS = 0.01
"""Share of a step's MACs that streaming may add: its depthwise rows multiply the zeros of the padding, other kernels skip them."""
CANDIDATES = 18
CLASSES = 10
SCALE, OFFSET = 1.0 / 128.0, -1.0
"""Exact in float32, so that bytes and their float32 copy are the same image."""
VARIANTS = {
    "plain": MemoryOptions.plain(),
    "streamed": MemoryOptions(input_dtype="uint8", input_scale=SCALE, input_offset=OFFSET, recompute="never"),
    "streamed + recompute": MemoryOptions(
        input_dtype="uint8", input_scale=SCALE, input_offset=OFFSET, recompute="lowest"
    ),
}
METHODS = ("FullTrain", "LastLayer", "SparseUpdate", "TinyTrain")
SESSION = "session"
COLUMNS = (
    "network", "method", "variant", "planned_bytes", "lower_bound_bytes", "forward_bytes", "measured_bytes", "macs_step", "extra_macs",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit code."""
    made = parser("memory", __doc__)
    made.add_argument("--size", type=int, default=128, help="height and width of the images (default: 128)")
    made.add_argument("--network", choices=sorted(BACKBONES), action="append", help="default: all three")
    made.add_argument("--board", default="mps2-an500", help="emulated board (default: mps2-an500)")
    made.add_argument("--plan-only", action="store_true", help="measure nothing on the board")
    made.add_argument("--resume", action="store_true", help="keep the rows that the JSON file has")
    options = parse(made, argv)
    report = Report(options)
    kept = {(r["network"], r["method"], r["variant"]): r for r in earlier_rows(options)}
    names = options.network or list(BACKBONES)
    parts = [(n, m) for n in names for m in (*METHODS, *(() if options.plan_only else (SESSION,)))]
    console = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("memory", total=len(parts))
        for name, method in parts:
            progress.update(task, description=f"{name} {method}")
            with report.attempt(f"{name} {method}"):
                if method == SESSION:
                    compare_session(report, options, name, kept)
                else:
                    compare(report, options, name, method, kept)
                report.save()
            progress.advance(task)
    print_table("Bytes of SRAM", COLUMNS, [[row.get(c) for c in COLUMNS] for row in report.rows])
    return report.finish()


def earlier_rows(options: Any) -> list[dict[str, Any]]:
    """Rows of an interrupted run with the same options, if it is to be resumed."""
    if not options.resume or options.json is None or not options.json.exists():
        return []
    found = json.loads(options.json.read_text(encoding="utf-8"))
    same = all(found["options"][k] == getattr(options, k) for k in ("size", "board", "plan_only"))
    return list(found["rows"]) if same else []


def make_network(name: str) -> torch.nn.Module:
    """The fused backbone with random weights and biases."""
    torch.manual_seed(0)
    network = BACKBONES[name](num_classes=CLASSES, fused=True).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def update_of(name: str, method: str, layers: Sequence[Any]) -> Any:
    """The update scheme; "TinyTrain" is a fixed plan: the first quarter of the channels of the last layers, 1×1 and depthwise."""
    if method == "FullTrain":
        return FullTrain()
    if method == "LastLayer":
        return LastLayer()
    if method == "SparseUpdate":
        return SparseUpdate(SCHEME[name])
    left, channels = PAPER_WEIGHTS[name], {}
    for layer in reversed(layers[-CANDIDATES - 1 : -1]):
        per_channel = layer.weights // layer.channels
        count = min(layer.channels // 4, left // per_channel)
        if count > 0:
            channels[layer.id] = list(range(count))
            left -= count * per_channel
    return UpdatePlan.from_channels(channels)


def compare(
    report: Report, options: Any, name: str, method: str, kept: dict[tuple[str, str, str], dict[str, Any]]
) -> None:
    """All variants of one network and method: a row each, and the checks between them."""
    rows = [kept.get((name, method, variant)) for variant in VARIANTS]
    network = make_network(name)
    example = (torch.zeros(1, 3, options.size, options.size),)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, options.size, options.size)).astype(np.uint8)
    layers: Sequence[Any] = ()
    if method == "TinyTrain" and None in rows:
        layers = tt.build(
            network, example_inputs=example, update=LastLayer(), memory=MemoryOptions.plain()
        ).layers
    reference: dict[str, np.ndarray] | None = None
    for variant, memory in VARIANTS.items():
        row = kept.get((name, method, variant))
        if row is None or (variant == "plain" and None in rows):
            update = update_of(name, method, layers)
            module = tt.build(
                network, example_inputs=example, optimizer=Adam(), update=update, memory=memory, name="bench"
            )
            x: np.ndarray = image
            if memory.input_dtype != "uint8":
                x = image.astype(np.float32) * np.float32(SCALE) + np.float32(OFFSET)
            got = results(module, x)
            reference = got if variant == "plain" else reference
            assert reference is not None
            if row is None:
                row = {"network": name, "method": method, "variant": variant, **planned(module)}
                row["difference_to_plain"] = difference(reference, got)
                if not options.plan_only:
                    row |= measured(module, options.board, x)
        report.rows.append(row)
        report.save()
    check_rows(report, name, method, report.rows[-len(VARIANTS) :])


def check_rows(report: Report, name: str, method: str, rows: Sequence[dict[str, Any]]) -> None:
    """What is asked of the variants of one network and method."""
    macs = rows[0]["macs_step"]
    for row in rows:
        label = f"{name} {method} {row['variant']}"
        row["extra_macs"] = row["macs_step"] - macs
        if "measured_bytes" in row:
            allowed = row["planned_bytes"] + row["stack_limit_bytes"]
            report.at_most(f"{label}: measured", allowed, row["measured_bytes"], "bytes")
        ratio = row["planned_bytes"] / row["lower_bound_bytes"]
        report.at_most(f"{label}: planned / lower bound", 1.01, ratio)
        if row["variant"] == "plain":
            continue
        report.at_most(f"{label}: largest difference to plain", 1e-6, row["difference_to_plain"])
        if row["variant"] == "streamed":
            report.at_most(f"{label}: extra MACs of a step", EXTRA_MACS, row["extra_macs"] / macs)
        if method == "LastLayer":
            report.at_most(f"{label}: forward alone", FORWARD_LIMIT, row["forward_bytes"], "bytes")
        if method == "TinyTrain":
            report.at_most(f"{label}: step", SESSION_LIMIT[name], row["planned_bytes"], "bytes")
    report.at_most(
        f"{name} {method}: recompute, planned", rows[1]["planned_bytes"], rows[2]["planned_bytes"], "bytes"
    )


def compare_session(
    report: Report, options: Any, name: str, kept: dict[tuple[str, str, str], dict[str, Any]]
) -> None:
    """One task-adaptive session within the bytes that are asked."""
    limit, method, variant = SESSION_LIMIT[name], SESSION, "streamed + recompute"
    row = kept.get((name, method, variant))
    if row is None:
        row = {"network": name, "method": method, "variant": variant, "limit_bytes": limit}
        row |= session_row(make_network(name), options.size, limit, PAPER_WEIGHTS[name], VARIANTS["streamed"])
        row["measured_bytes"] = row["sram_bytes_linked"]
    report.rows.append(row)
    label = f"{name} {method}"
    report.at_most(
        f"{label}: SRAM linked for {row['session_board']}", limit, row["sram_bytes_linked"], "bytes"
    )
    report.at_most(f"{label}: arena touched", row["arena_bytes"], row["arena_high_water_bytes"], "bytes")
    weights = row.get("installed_weights", 0)
    report.at_least(f"{label}: weights trained", PAPER_WEIGHTS[name], weights)


def planned(module: Any) -> dict[str, Any]:
    """Figures of the plan; ``forward_bytes`` is the peak of ``predict`` without what is kept for training."""
    arena, metadata = module.arena, module.metadata
    fullest = max(arena.problems, key=lambda e: arena.plans[e].lower_bound)
    problem = arena.problems[fullest]
    kept = sum(
        b.size
        for b in arena.problems["predict"].buffers
        if b.kind in ("weight", "optimizer state", "gradient")
    )
    return {
        "planned_bytes": arena.arena_bytes,
        "lower_bound_bytes": arena.lower_bound,
        "forward_bytes": arena.plans["predict"].peak - kept,
        "kept_bytes": kept,
        "trained_weights": metadata["trained_weights"],
        "bytes_by_kind": bytes_by_kind(problem.buffers, lower_bound_peak(problem).step),
        "macs_step": metadata["macs"]["step"],
        "flash_bytes": sum(metadata["training"]["pools"]["flash"].values()),
        "recomputed": metadata["memory"]["recomputed"].get("step", {"segments": 0, "macs": 0}),
    }


def measured(module: Any, board: str, x: np.ndarray) -> dict[str, int]:
    """One prediction and one step on the board: arena up to the last byte that was written, and stack."""
    with Session(module, board=board, timeout_s=600.0) as session:
        session.predict(x)
        session.step(x, 3)
        memory = session.memory()
    return {
        "arena_high_water_bytes": memory["arena_high_water_bytes"],
        "stack_bytes": memory["stack_bytes"],
        "stack_limit_bytes": memory["stack_limit_bytes"],
        "measured_bytes": memory["arena_high_water_bytes"] + memory["stack_bytes"],
        "sram_bytes_linked": memory["sram_bytes_linked"],
    }


def results(module: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Output, losses and trained parameters after two steps, on this machine."""
    with InProcess(module) as library:
        out = {"output": library.predict(x)}
        out["loss"] = np.array([library.step(x, 3), library.step(x, 1)])
        for tensor in module.metadata["tensors"]:
            if tensor["role"] == "param":
                out[tensor["name"]] = library.read(tensor["name"])
    return out


def difference(reference: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> float:
    """Largest error over all tensors, relative to the largest value of each."""
    return max(
        float(np.abs(got[name] - want).max() / max(float(np.abs(want).max()), 1e-3))
        for name, want in reference.items()
    )


if __name__ == "__main__":
    sys.exit(main())
