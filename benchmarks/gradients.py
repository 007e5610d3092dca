"""Gradients of our fp32 host libraries against PyTorch autograd in float64: operators, networks, optimizers, front ends, plans, boards.

An operator's parameter tensors may be off by 1e-5 (‖Δ‖₂ / ‖g‖₂); a network's by 1e-5 or three times what PyTorch's own float32
autograd is off, on the same folded network. Random plans are compared with the network trained whole, and the multiply-accumulates
that the program executes with what the cost model states. ``--quick`` takes a few of each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby

import torch

from benchmarks import gradients_boards as boards
from benchmarks import gradients_networks as networks
from benchmarks import gradients_plans as plans
from benchmarks.common import Report, parse, parser, print_table
from benchmarks.gradients_operators import measure_operators
from benchmarks.gradients_reference import LIMIT
from benchmarks.networks import zoo
from benchmarks.operator_cases import operator_cases

PLAN_LIMIT = 1e-6
OPTIMIZED = ("cnn_1d", "resnet8", "mobilenet_v2_035")
ROUTED = ("mobilenet_v2_035", "mcunet")
QUICK_NETWORKS = ("cnn_1d", "ds_cnn")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chosen sections and return the exit code."""
    made = parser("gradients", __doc__)
    made.add_argument("--quick", action="store_true", help="a few cases of each section")
    made.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure"
    )
    made.add_argument(
        "--networks", nargs="+", choices=list(zoo()), default=list(zoo()), help="of the section networks"
    )
    options = parse(made, argv)
    torch.set_num_threads(1)
    report, compiler = Report(options), networks.Compiler()
    for section in options.sections:
        start = time.perf_counter()
        with report.attempt(section):
            SECTIONS[section](report, compiler, options)
        print(f"{section}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        report.save()
    return report.finish()


def run_operators(report: Report, compiler: networks.Compiler, options: argparse.Namespace) -> None:
    """Every operator case."""
    cases = operator_cases()[:: 16 if options.quick else 1]
    results = list(measure_operators(cases, compiler))
    for r in results:
        row = {"section": "operators", "case": r.case, "tensor": r.tensor, "tensors": r.tensors}
        report.rows.append(row | {"error": None if r.failure else r.error, "failure": r.failure})
        if r.failure or r.error > LIMIT:
            report.check(
                f"operator {r.case}", f"<= {LIMIT:g}", r.failure or f"{r.error:.3g} ({r.tensor})", False
            )
    print_table(
        "Operators", ["case", "error", "tensor"], [[r.case, r.failure or r.error, r.tensor] for r in results]
    )
    report.at_least("operator cases", 1 if options.quick else 120, len(results))
    report.at_most("operators, worst error", LIMIT, max(r.error for r in results))


def run_networks(report: Report, compiler: networks.Compiler, options: argparse.Namespace) -> None:
    """Every network with every update."""
    found = []
    for name in QUICK_NETWORKS if options.quick else options.networks:
        with report.attempt(f"network {name}"):
            for title, comparison in networks.measure_updates(name, compiler):
                found.append((name, title, comparison))
                print(f"{name}, {title}: {comparison.share:.2g} of what is allowed", file=sys.stderr)
    _compared(report, "networks", found)


def run_optimizers(report: Report, compiler: networks.Compiler, options: argparse.Namespace) -> None:
    """Steps of the optimizers against torch.optim."""
    found = []
    for name in OPTIMIZED[:1] if options.quick else OPTIMIZED:
        reference = networks.reference_of(name)
        waiting = [
            (title, optimizer, compiler.load(networks.built(reference, optimizer=optimizer)))
            for title, optimizer in networks.OPTIMIZERS.items()
        ]
        for title, optimizer, future in waiting:
            with future.result()[1] as library:
                found.append((name, title, networks.measure_optimizer(reference, optimizer, library)))
    _compared(report, "optimizers", found)


def run_front_ends(report: Report, compiler: networks.Compiler, options: argparse.Namespace) -> None:
    """Networks that come through ONNX and Relay text."""
    found = []
    for name in QUICK_NETWORKS[:1] if options.quick else ROUTED:
        for route, reference in networks.through_front_ends(name):
            module, library = compiler.load(networks.built(reference, accumulate=True)).result()
            with library:
                found.append((name, route, networks.gradient_errors(reference, module, library)))
    _compared(report, "front ends", found)


def run_plans(report: Report, compiler: networks.Compiler, options: argparse.Namespace) -> None:
    """Random plans: rows of the full gradients, and multiply-accumulates."""
    counts = {"windows": 8} if options.quick else plans.NETWORKS
    results = []
    for name, count in counts.items():
        for r in plans.measure_plans(name, count, compiler):
            results.append(r)
            said = f"{r.error:.1e}, trained {r.trained_error:.1e}, {'equal' if r.agrees else 'other'} MACs"
            print(f"{name}, plan {r.index + 1} of {count}: {said}", file=sys.stderr)
    for r in results:
        report.rows.append(
            {"section": "plans", "network": r.network, "plan": r.index, "layers": r.layers, "error": r.error}
            | {"trained_error": r.trained_error}
            | {"executed_macs": r.executed, "stated_macs": r.stated, "metadata_macs": r.metadata}
        )
    table = []
    for name, group in groupby(results, key=lambda r: r.network):
        of = list(group)
        table.append(
            [
                name,
                len(of),
                max(r.error for r in of),
                max(r.trained_error for r in of),
                sum(r.agrees for r in of),
            ]
        )
    print_table(
        "Random plans", ["network", "plans", "worst error", "worst error, trained", "exact MACs"], table
    )
    report.at_least("plans", 1 if options.quick else 200, len(results))
    report.at_most("pruned gradients, worst error", PLAN_LIMIT, max(r.error for r in results))
    report.at_most("the same with trained weights", LIMIT, max(r.trained_error for r in results))
    report.equal("plans whose executed MACs are those stated", len(results), sum(r.agrees for r in results))


def run_boards(report: Report, compiler: networks.Compiler, options: argparse.Namespace) -> None:
    """One sample on the emulated board."""
    found = []
    for name in boards.NETWORKS[: 1 if options.quick else None]:
        with report.attempt(f"board {boards.BOARD}, {name}"):
            found.append((name, *boards.measure_board(name)))
    _compared(report, "boards", found)


def _compared(report: Report, section: str, found: Sequence[tuple[str, str, networks.Comparison]]) -> None:
    table = []
    for name, variant, c in found:
        report.rows.append({"section": section, "network": name, "variant": variant, **c.row()})
        limit = c.error / c.share if c.share else LIMIT
        report.at_most(f"{section}: {name}, {variant}", limit, c.error)
        table.append([name, variant, c.error, c.torchs, c.share, c.tensor])
    columns = ["network", "variant", "error", "PyTorch float32", "of allowed", "tensor"]
    print_table(section.capitalize(), columns, table)


SECTIONS: dict[str, Callable[[Report, networks.Compiler, argparse.Namespace], None]] = {
    "operators": run_operators,
    "networks": run_networks,
    "optimizers": run_optimizers,
    "front_ends": run_front_ends,
    "plans": run_plans,
    "boards": run_boards,
}


if __name__ == "__main__":
    sys.exit(main())
