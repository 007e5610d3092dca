"""A TinyTrain session within its bytes: on an emulated Cortex-M7 whose memory map has 512 KB of SRAM.

Fisher potentials of two samples, selection on the device, one step of Adam in float32 per sample, prediction; then the paper's number
of weights, chosen by the potentials that were measured, installed and trained. All that is in SRAM counts: arena, stack, receive
buffers, everything else linked. Beside it what the same bytes select where gradients are accumulated over samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import tvm_tinytrain as tt
from tvm_tinytrain.config import Adam, MemoryOptions
from tvm_tinytrain.memory.lower_bound import lower_bound_peak
from tvm_tinytrain.memory.picture import bytes_by_kind
from tvm_tinytrain.micro import Session
from tvm_tinytrain.selection import Budgets, FisherMap, select
from tvm_tinytrain.selection.table_accounting import TableAccounting

BOARD = "mps2-an500-512kb"
BESIDE_ARENA = 7 * 1024
"""Stack, guard and receive buffers of the firmware, linked beside the arena."""
SAMPLES = 2


def session_row(
    network: torch.nn.Module, size: int, limit: int, weights: int, memory: MemoryOptions
) -> dict[str, Any]:
    """One session's figures. ``limit`` is bytes of SRAM for everything, ``weights`` the paper's number of trained weights."""
    update, budget = tt.TaskAdaptive(), tt.Budget(memory=limit - BESIDE_ARENA)

    def built(*, accumulate: bool) -> tt.TrainModule:
        return tt.build(
            network,
            example_inputs=(torch.zeros(1, 3, size, size),),
            optimizer=Adam(),
            update=update,
            budget=budget,
            accumulate=accumulate,
            memory=replace(memory, recompute="auto"),
            name="bench",
        )

    row, potentials = _session(built(accumulate=False), size, weights)
    tables = TableAccounting.from_metadata(built(accumulate=True).metadata)
    found = select(tables, Budgets.of(budget, tables), FisherMap(potentials), update)
    counts = {u.layer: len(u.outputs) for u in found.plan.layers}
    row["selected_weights_accumulating"] = sum(
        counts.get(c.layer, 0) * (c.weights // c.channels) for c in tables.candidates
    )
    return row


def _session(
    module: tt.TrainModule, size: int, weights: int
) -> tuple[dict[str, Any], dict[int, npt.NDArray[Any]]]:
    """Figures of a session on the board, and the potentials that it measured."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (SAMPLES, 1, 3, size, size)).astype(np.uint8)
    adaptive = module.metadata["adaptive"]
    row: dict[str, Any] = {
        "session_board": BOARD,
        "arena_bytes": module.arena.arena_bytes,
        "activation_bytes_by_depth": adaptive["activation_bytes"],
        "macs_fisher": module.metadata["macs"]["fisher"],
        "recomputed": module.metadata["memory"]["recomputed"],
    }
    for entry in ("fisher", "step", "predict"):
        problem = module.arena.problems[entry]
        row[f"{entry}_bytes_by_kind"] = bytes_by_kind(problem.buffers, lower_bound_peak(problem).step)
    with Session(module, board=BOARD, timeout_s=600.0) as session:
        session.call("fisher_begin")
        for label, image in enumerate(images):
            _call(session, "fisher", image, label)
        potentials = {c["layer"]: session.read(f"delta_{c['layer']}") for c in adaptive["candidates"]}
        session.call("select")
        row["selected_weights"] = _trained(adaptive, session.read("plan"))
        _train(session, images)
        session.call("release")
        for depth in range(len(adaptive["candidates"])):
            request = _request(adaptive, potentials, depth, weights)
            if request is None or _needed(adaptive, request, depth) > module.arena.arena_bytes:
                continue
            session.write("request", np.packbits(np.concatenate(request), bitorder="little"))
            session.call("install")
            row |= {"depth": depth, "installed_weights": _trained(adaptive, session.read("plan"))}
            row["planned_bytes"] = _needed(adaptive, request, depth)
            _train(session, images)
            break
        row["logits"] = [float(v) for v in session.predict(images[0]).ravel()]
        used = session.memory()
    row |= {k: used[k] for k in ("arena_high_water_bytes", "stack_bytes", "sram_bytes_linked")}
    return row, potentials


def _train(session: Session, images: np.ndarray) -> None:
    """Two passes over all samples, a step for each."""
    for _ in range(2):
        for label, image in enumerate(images):
            _call(session, "step", image, label)


def _call(session: Session, entry: str, image: np.ndarray, label: int) -> None:
    """Runs an entry on one sample."""
    name = next(n for n, t in session.tensors.items() if t.role == "input")
    session.write(name, image)
    session.write("label", np.array([label], np.int32))
    session.call(entry)


def _trained(adaptive: dict[str, Any], plan: np.ndarray) -> int:
    """Weights that the installed plan trains."""
    rows = plan[3 : 3 + len(adaptive["candidates"])]
    return sum(
        int(k) * (c["weights"] // c["channels"]) for c, k in zip(adaptive["candidates"], rows, strict=True)
    )


def _request(
    adaptive: dict[str, Any], potentials: dict[int, np.ndarray], depth: int, weights: int
) -> list[np.ndarray] | None:
    """For each candidate which channels are trained: those of most potential per weight from ``depth`` on, as many weights as asked."""
    chosen = [np.zeros(c["channels"], np.uint8) for c in adaptive["candidates"]]
    order = sorted(
        (-float(potentials[c["layer"]][channel]) / (c["weights"] // c["channels"]), position, channel)
        for position, c in enumerate(adaptive["candidates"][depth:], start=depth)
        for channel in range(c["channels"])
    )
    left = weights
    for _, position, channel in order:
        per_channel = (
            adaptive["candidates"][position]["weights"] // adaptive["candidates"][position]["channels"]
        )
        if left > 0 and per_channel - left < weights * 0.01:
            chosen[position][channel] = 1
            left -= per_channel
    return chosen if left <= 0 else None


def _needed(adaptive: dict[str, Any], request: Sequence[np.ndarray], depth: int) -> int:
    """Bytes of the arena that a plan takes."""
    first = next(i for i, channels in enumerate(request) if channels.any())
    rows = sum(
        int(channels.sum()) * c["channel_bytes"]
        for c, channels in zip(adaptive["candidates"], request, strict=True)
    )
    return int(adaptive["activation_bytes"][max(first, depth)]) + rows
