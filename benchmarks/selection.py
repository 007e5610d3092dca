"""Selection on the device against the host, the greedy criterion and brute force, on random Fisher maps.

Three backbones with a linear classifier are built as task-adaptive libraries for the Cortex-M7; their tables
are what both sides select from. On this machine the library's C is called in process, for all maps and
criteria; on the emulated M7 the library itself selects, installs and trains one sample, for some of them.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from statistics import geometric_mean, mean, median
from typing import Any

import numpy as np
import torch

from benchmarks.common import Report, parse, parser, print_table
from benchmarks.device_select import CRITERIA, DeviceSelect
from benchmarks.select_on_board import BoardSelect
from tvm_tinytrain.build import TrainModule, build
from tvm_tinytrain.config import Adam, Budget
from tvm_tinytrain.models import Backbone, mcunet, mobilenet_v2, proxyless_nas
from tvm_tinytrain.selection import (
    Budgets,
    ChainLink,
    FisherMap,
    Selection,
    TableAccounting,
    TableCandidate,
    TaskAdaptive,
    select,
)
from tvm_tinytrain.selection.integers import quantise

BACKBONES = {"mcunet": mcunet, "mobilenet_v2": mobilenet_v2, "proxyless_nas": proxyless_nas}
MEMORY = "2MB"
OTHER_RATIOS = (Fraction(1, 2), Fraction(1, 8))
"""Of channels, beside the default of 1/4: the paper shows all three."""

SUPPORT_SAMPLES = 25
SELECTION_SHARE = 0.01
"""Asked of score + select + plan, of the instructions of a Fisher pass over the support set."""


@dataclass(frozen=True)
class Case:
    """One Fisher map and its budgets."""

    fisher: FisherMap
    budgets: Budgets


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts; return 1 if a plan differs, breaks a budget or is beaten."""
    made = parser("selection", __doc__)
    made.add_argument("--maps", type=int, default=300, help="Fisher maps for each backbone")
    made.add_argument("--board-maps", type=int, default=10, help="maps that the board selects from too")
    made.add_argument("--small", type=int, default=300, help="small problems against brute force")
    made.add_argument("--board", default="mps2-an500", help="emulated board")
    made.add_argument("--networks", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    options = parse(made, argv)
    report = Report(options)
    device = DeviceSelect()
    with report.attempt("small problems"):
        small_problems(report, device, options.small)
    for name in options.networks:
        with report.attempt(name):
            module = library(name)
            tables = TableAccounting.from_metadata(module.metadata)
            on_host(report, device, name, tables, options.maps)
            if options.board_maps:
                on_board(report, name, module, tables, options)
        report.save()
    show(report)
    return report.finish()


def library(name: str) -> TrainModule:
    """Build the task-adaptive library of a backbone: last 18 layers, Adam, 128×128 images."""
    torch.manual_seed(0)
    model: Backbone = BACKBONES[name](num_classes=10)
    image = (torch.zeros(1, 3, 128, 128),)
    budget = Budget(MEMORY, 0.15)
    return build(
        model.eval(), example_inputs=image, optimizer=Adam(), update=TaskAdaptive(), budget=budget, name=name
    )


def cases(tables: TableAccounting, count: int) -> Iterator[Case]:
    """Maps as log-normal as real ones within a layer and across layers, a third of them with dead channels;
    3 % to 40 % of FullTrain's backward MACs; 8 KB to 1 MB for what is trained."""
    for seed in range(count):
        rng = np.random.default_rng([seed, tables.full_macs])
        fisher = {}
        for c in tables.candidates:
            values = np.exp(rng.normal(rng.normal(0, 2), rng.uniform(0.5, 2), c.channels))
            if seed % 3 == 0:
                values[rng.random(c.channels) < 0.3] = 0
            fisher[c.layer] = values.astype(np.float32)
        memory = tables.memory_bytes({}) + int(2 ** rng.uniform(13, 20))
        yield Case(FisherMap(fisher), Budgets(memory, int(tables.full_macs * rng.uniform(0.03, 0.4))))


def on_host(report: Report, device: DeviceSelect, name: str, tables: TableAccounting, count: int) -> None:
    """All criteria on all maps: the device's C against the host, exact against greedy, budgets."""
    same = over = worse = 0
    captured: dict[str, list[float]] = {"exact": [], "tinytrain": [], "best tinytrain": []}
    for seed, case in enumerate(cases(tables, count)):
        found: dict[str, Selection] = {}
        for criterion in CRITERIA:
            options = TaskAdaptive(criterion, candidates=tables.layers, seed=seed)
            fisher = None if criterion == "random" else case.fisher
            found[criterion] = select(tables, case.budgets, fisher, options)
            same += device.select(tables, case.budgets, fisher, options).equals(found[criterion])
        greedy = [
            select(
                tables, case.budgets, case.fisher, TaskAdaptive("tinytrain", ratio, candidates=tables.layers)
            )
            for ratio in OTHER_RATIOS
        ]
        over += exceeds(tables, case.budgets, found["exact"])
        captured["exact"].append(found["exact"].share)
        captured["tinytrain"].append(found["tinytrain"].share)
        captured["best tinytrain"].append(max(it.share for it in (*greedy, found["tinytrain"])))
        worse += any(found["exact"].captured < it.captured for it in (*greedy, found["tinytrain"]))
    every = count * len(CRITERIA)
    report.check(
        f"{name}: device plan = host plan", f"{every} of {every}", f"{same} of {every}", same == every
    )
    report.equal(f"{name}: exact plans over a budget, of {count}", 0, over)
    report.equal(f"{name}: maps where exact captures less than tinytrain, of {count}", 0, worse)
    row = {"network": name, "machine": "host", "maps": count, "criteria": len(CRITERIA)}
    row["candidate_channels"] = tables.total_channels
    row |= {f"mean_share_{key.replace(' ', '_')}": mean(values) for key, values in captured.items()}
    report.rows.append(row | ratios(captured["exact"], captured["tinytrain"], "tinytrain"))
    report.rows[-1] |= ratios(captured["exact"], captured["best tinytrain"], "best_tinytrain")


def ratios(exact: list[float], greedy: list[float], name: str) -> dict[str, float]:
    """Geometric mean, median and least of captured by exact over captured by greedy, where greedy captures
    anything. An arithmetic mean would be one of the few maps where greedy captures nearly nothing."""
    found = [a / b for a, b in zip(exact, greedy, strict=True) if b]
    key = f"exact_over_{name}"
    figures = {
        f"geometric_mean_{key}": geometric_mean(found),
        f"median_{key}": median(found),
        f"least_{key}": min(found),
    }
    return {**figures, f"maps_where_{name}_captures_nothing": len(exact) - len(found)}


def exceeds(tables: TableAccounting, budgets: Budgets, found: Selection) -> bool:
    """Whether a plan breaks a budget, summed up here from the tables and the plan alone."""
    trained = {u.layer: len(u.outputs) for u in found.plan.layers}
    mask = sum(1 << i for i, c in enumerate(tables.candidates) if c.layer in trained)
    first = (mask & -mask).bit_length() - 1 if mask else len(tables.candidates)
    memory = tables.activation_bytes[first]
    macs = sum(link.macs for link in tables.links if link.needed & mask)
    for c in tables.candidates:
        memory += trained.get(c.layer, 0) * c.channel_bytes
        macs += trained.get(c.layer, 0) * c.channel_macs
    assert budgets.memory_bytes is not None and budgets.macs is not None
    return memory > budgets.memory_bytes or macs > budgets.macs


def on_board(
    report: Report, name: str, module: TrainModule, tables: TableAccounting, options: Namespace
) -> None:
    """The library itself on the board: its plan, its instructions, and the arena that it touches."""
    rows: list[dict[str, Any]] = []
    with BoardSelect(module, tables, options.board) as board:
        pass_instructions = board.fisher_instructions() * SUPPORT_SAMPLES
        for case in cases(tables, options.board_maps):
            for criterion in ("exact", "tinytrain"):
                adaptive = TaskAdaptive(criterion, candidates=tables.layers)
                host = select(tables, case.budgets, case.fisher, adaptive)
                run = board.select(case.fisher, case.budgets, adaptive)
                rows.append(
                    {
                        "network": name,
                        "machine": options.board,
                        "criterion": criterion,
                        "same_plan": run.plan == host.plan,
                        "select_instructions": run.instructions,
                        "fisher_pass_instructions": pass_instructions,
                        "trained_channels": sum(len(u.outputs) for u in host.plan.layers),
                        "memory_budget_bytes": case.budgets.memory_bytes,
                        "plan_bytes": host.memory_bytes,
                        "arena_high_water_bytes": run.high_water_bytes,
                    }
                )
    report.rows += rows
    same = sum(row["same_plan"] for row in rows)
    asked = f"{len(rows)} of {len(rows)}"
    report.check(
        f"{name}: plan on {options.board} = host plan", asked, f"{same} of {len(rows)}", same == len(rows)
    )
    over = sum(row["arena_high_water_bytes"] > row["memory_budget_bytes"] for row in rows)
    report.equal(f"{name}: arenas above their budget, of {len(rows)}", 0, over)
    slowest = max(row["select_instructions"] for row in rows)
    what = f"{name}: select, of a Fisher pass over {SUPPORT_SAMPLES} samples"
    report.check(what, f"<= {SELECTION_SHARE:.0%}", f"{slowest / pass_instructions:.3%}",
                 slowest <= SELECTION_SHARE * pass_instructions)  # fmt: skip


def small_problems(report: Report, device: DeviceSelect, count: int) -> None:
    """Tables of 1 to 5 layers with at most 11 channels: exact against every set of channels, on both sides."""
    equal = same = 0
    for seed in range(count):
        tables, case = small_case(np.random.default_rng(seed))
        options = TaskAdaptive("exact", candidates=tables.layers)
        host = select(tables, case.budgets, case.fisher, options)
        equal += host.captured == brute_force(tables, case) and host.proven
        same += device.select(tables, case.budgets, case.fisher, options).equals(host)
    report.check(
        "exact = brute force, small problems", f"{count} of {count}", f"{equal} of {count}", equal == count
    )
    report.check(
        "device plan = host plan, small problems", f"{count} of {count}", f"{same} of {count}", same == count
    )


def small_case(rng: np.random.Generator) -> tuple[TableAccounting, Case]:
    """Random costs, with potentials that have ties and zeros."""
    channels = rng.integers(1, 5, rng.integers(1, 6))
    while channels.sum() > 11:
        channels[np.argmax(channels)] -= 1
    entries = []
    for i, k in enumerate(channels):
        weights, forward_macs, channel_bytes, channel_macs = (int(v) for v in rng.integers(1, 50, 4))
        entries.append(TableCandidate(i, int(k), weights, forward_macs, channel_bytes, channel_macs))
    activation = tuple(int(v) for v in np.sort(rng.integers(0, 200, len(entries) + 1))[::-1])
    links = tuple(ChainLink((2 << i) - 1, int(rng.integers(0, 150))) for i in range(len(entries) - 1))
    tables = TableAccounting(tuple(entries), activation, links, 1)
    everything = {c.layer: c.channels for c in entries}
    low, high = tables.memory_bytes({}), tables.memory_bytes(everything)
    memory = int(rng.integers(low, high + 1))
    macs = int(rng.integers(0, tables.backward_macs(everything) + 1))
    fisher = {c.layer: rng.choice([0, 1, 1, 2, 3.5, 9, 80], c.channels).astype(np.float32) for c in entries}
    return tables, Case(FisherMap(fisher), Budgets(memory, macs))


def brute_force(tables: TableAccounting, case: Case) -> int:
    """The most potential of any set of channels within both budgets."""
    potentials = quantise(case.fisher.layers)
    channels = [(layer, int(q)) for layer in case.fisher for q in potentials[layer]]
    best = 0
    for picks in product((False, True), repeat=len(channels)):
        counts = dict.fromkeys(tables.layers, 0)
        value = 0
        for (layer, q), picked in zip(channels, picks, strict=True):
            counts[layer] += picked
            value += q * picked
        if value > best and (
            tables.memory_bytes(counts) <= case.budgets.memory_bytes  # type: ignore[operator]
            and tables.backward_macs(counts) <= case.budgets.macs  # type: ignore[operator]
        ):
            best = value
    return best


def show(report: Report) -> None:
    """Two tables: captured potential, and the board."""
    host = [row for row in report.rows if row["machine"] == "host"]
    keys = {
        "network": "network",
        "maps": "maps",
        "channels": "candidate_channels",
        "share exact": "mean_share_exact",
        "share tinytrain": "mean_share_tinytrain",
        "exact/tinytrain: geometric mean": "geometric_mean_exact_over_tinytrain",
        "median": "median_exact_over_tinytrain",
        "exact/best of three ratios: geometric mean": "geometric_mean_exact_over_best_tinytrain",
        "median ": "median_exact_over_best_tinytrain",
        "least": "least_exact_over_best_tinytrain",
    }
    print_table("Captured Fisher potential", list(keys), [[row[k] for k in keys.values()] for row in host])
    cells: list[list[object]] = []
    board = [row for row in report.rows if row["machine"] != "host"]
    for network, criterion in dict.fromkeys((row["network"], row["criterion"]) for row in board):
        runs = [r for r in board if (r["network"], r["criterion"]) == (network, criterion)]
        counted = [r["select_instructions"] for r in runs]
        cells.append([network, criterion, len(runs), round(sum(counted) / len(counted)), max(counted)])
        cells[-1] += [f"{max(counted) / runs[0]['fisher_pass_instructions']:.3%}"]
        cells[-1] += [max(r["arena_high_water_bytes"] / r["memory_budget_bytes"] for r in runs)]
    columns = [
        "network",
        "criterion",
        "maps",
        "mean instructions",
        "most",
        "of a Fisher pass",
        "arena/budget",
    ]
    print_table("Select and install on the board", columns, cells)


if __name__ == "__main__":
    sys.exit(main())
