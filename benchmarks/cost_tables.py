"""The paper's cost tables beside ours: TinyTrain's Tables 2, 7 and 11 for the three backbones.

"ours" follows the paper's rules (`tvm_tinytrain.selection.paper`) and has to agree within 1 % wherever
the rules are known; every other figure has its reason. "exact" is what our kernels execute, and the bytes
that are live in our step for one sample with Adam, biases included: the least that a memory plan can
have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.common import Report, parse, parser, print_table
from benchmarks.paper_figures import BATCH, METHODS, NETWORKS, TABLE_2, TABLE_7, TABLE_11
from tvm_tinytrain.models import Backbone, mcunet, mobilenet_v2, proxyless_nas
from tvm_tinytrain.selection import (
    LayerSpec,
    NetworkCosts,
    full_train,
    inverted_bottlenecks,
    last_layer,
    lite_residuals,
    network_costs,
    plan_cost,
    sparse_update,
)
from tvm_tinytrain.selection.paper import (
    paper_backward_macs,
    paper_full_train_bytes,
    paper_full_train_macs,
    paper_memory_bytes,
    paper_optimizer_bytes,
    paper_peak_bytes,
    paper_saved_activation_bytes,
    paper_trained_weights,
)

UNITS = {"MB": (1 << 20, "bytes"), "KB": (1 << 10, "bytes"), "M MACs": (1_000_000, "macs")}
"""What the paper prints: (how many of ours, the ending of our keys)."""

MB = UNITS["MB"][0]
TOLERANCE = 0.01
SCHEME = {"mcunet": "mcunet-99kb", "mobilenet_v2": "mbv2-99kb", "proxyless_nas": "proxyless-98kb"}
BACKBONES = {"mcunet": mcunet, "mobilenet_v2": mobilenet_v2, "proxyless_nas": proxyless_nas}
TITLES = {2: "backward pass", 7: "MCUNet's memory by part", 11: "saved activations of a Fisher pass"}

LAST_LAYER_QUIRK = (
    "the paper's figure is dW of the last convolution, 1.475 M, plus its 92,160 weights; "
    "for the other two networks it is dW alone"
)
NO_SCHEME = "the paper's layers and ratios are not published, no scheme of MIT gives its figures; ours is {}"
TINYTL = (
    "the shapes of the paper's lite residuals are not published; "
    "ours: {} adapters (pool 2, 5×5 in 2 groups, 1×1), their dX and dW, and the backbone's dX behind the first block"
)
TINYTRAIN = "a mean over tasks of unpublished selections; the memory stands for about {:,} trained weights"


class Ours(NamedTuple):
    """A method's costs by the paper's rules, None where there is none; why they may differ; the exact costs."""

    memory_bytes: int | None
    macs: int | None
    memory_reason: str = ""
    macs_reason: str = ""
    exact_bytes: int | None = None
    exact_macs: int | None = None


def layer_specs(name: str, size: int = 128) -> tuple[LayerSpec, ...]:
    """Describe a backbone for 3×size×size images."""
    backbone: Backbone = BACKBONES[name]()
    spec = backbone.spec
    return inverted_bottlenecks(spec.stem_channels, spec.blocks, spec.mix_channels, size=size)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a figure whose rule is known is off by more than 1 %."""
    report = Report(parse(parser("cost_tables", __doc__), argv))
    report.rows.extend(rows())
    for row in report.rows:
        check(report, row)
    show(report.rows)
    return report.finish()


def rows() -> list[dict[str, Any]]:
    """All figures of the three tables, the paper's and ours, in bytes and MACs."""
    specs = {name: layer_specs(name) for name in NETWORKS}
    costs = {name: network_costs(layers) for name, layers in specs.items()}
    made = []
    for name in NETWORKS:
        for method in METHODS:
            paper, ours = TABLE_2[name][method], METHOD[method](name, specs[name], costs[name])
            key = (2, name, method, "memory", "MB")
            made.append(figure(key, paper.memory_mb, ours.memory_bytes, ours.memory_reason, ours.exact_bytes))
            key = (2, name, method, "compute", "M MACs")
            made.append(figure(key, paper.macs_m, ours.macs, ours.macs_reason, ours.exact_macs))
    for method, parts in TABLE_7.items():
        reason, sizes = memory_parts(method, costs["mcunet"])
        for part, value in parts.items():
            key = (7, "mcunet", method, part, "MB")
            made.append(figure(key, value, sizes[part], "" if part == "activations" else reason))
    for name in NETWORKS:
        for blocks, value in zip(range(6, 0, -1), TABLE_11[name], strict=True):
            saved = paper_saved_activation_bytes(costs[name], costs[name].last_blocks(blocks))
            made.append(figure((11, name, f"last {blocks} blocks", "activations", "KB"), value, saved))
    return made


def _full_train(name: str, specs: Sequence[LayerSpec], network: NetworkCosts) -> Ours:
    cost = plan_cost(network, full_train(network))
    memory, macs = paper_full_train_bytes(network, BATCH), paper_full_train_macs(network)
    return Ours(memory, macs, exact_bytes=cost.memory_bytes, exact_macs=cost.backward_macs)


def _last_layer(name: str, specs: Sequence[LayerSpec], network: NetworkCosts) -> Ours:
    plan = last_layer(network)
    reason, cost = LAST_LAYER_QUIRK if name == "mcunet" else "", plan_cost(network, plan)
    macs = paper_backward_macs(network, plan)
    return Ours(paper_memory_bytes(network, plan), macs, "", reason, cost.memory_bytes, cost.backward_macs)


def _sparse_update(name: str, specs: Sequence[LayerSpec], network: NetworkCosts) -> Ours:
    plan = sparse_update(network, SCHEME[name])
    reason = "" if name == "mcunet" else NO_SCHEME.format(SCHEME[name])
    cost, macs = plan_cost(network, plan), paper_backward_macs(network, plan)
    memory = paper_memory_bytes(network, plan)
    return Ours(memory, macs, reason, reason, cost.memory_bytes, cost.backward_macs)


def _tinytl(name: str, specs: Sequence[LayerSpec], network: NetworkCosts) -> Ours:
    adapters = lite_residuals(specs)
    added = sum(layer.forward_macs for adapter in adapters for layer in adapter.costs)
    first = [layer.id for layer in network if layer.block == adapters[0].block]
    chain = sum(layer.forward_macs for layer in network.layers[first[-1] + 1 :])
    reason = TINYTL.format(len(adapters))
    return Ours(None, chain + 2 * added, reason, reason)


def _tinytrain(name: str, specs: Sequence[LayerSpec], network: NetworkCosts) -> Ours:
    reason = TINYTRAIN.format(round(implied_weights(name, network), -2))
    return Ours(None, None, reason, reason)


METHOD = {
    "FullTrain": _full_train,
    "LastLayer": _last_layer,
    "TinyTL": _tinytl,
    "SparseUpdate": _sparse_update,
    "TinyTrain": _tinytrain,
}


def implied_weights(name: str, network: NetworkCosts) -> int:
    """Trained weights that the paper's memory of TinyTrain stands for."""
    share = TABLE_2[name]["TinyTrain"].memory_mb * MB - paper_peak_bytes(network)
    return round(share / paper_optimizer_bytes(1))


def memory_parts(method: str, network: NetworkCosts) -> tuple[str, dict[str, int]]:
    """Bytes of each part of MCUNet's memory, and why they may differ."""
    reason = ""
    if method == "TinyTrain":
        weights = implied_weights("mcunet", network)
        reason = TINYTRAIN.format(round(weights, -2))
    else:
        plan = last_layer(network) if method == "LastLayer" else sparse_update(network, SCHEME["mcunet"])
        weights = paper_trained_weights(network, plan)
    peak, adam, sgd = (
        paper_peak_bytes(network),
        paper_optimizer_bytes(weights),
        paper_optimizer_bytes(weights, "sgd"),
    )
    own = 4 * weights
    return reason, {
        "weights": own,
        "adam": adam - own,
        "sgd": sgd - own,
        "activations": peak,
        "adam total": peak + adam,
        "sgd total": peak + sgd,
    }


def figure(
    key: tuple[int, str, str, str, str],
    paper: float,
    ours: int | None,
    reason: str = "",
    exact: int | None = None,
) -> dict[str, Any]:
    """One row; `paper` is in the printed unit, the others in bytes or MACs."""
    table, network, method, what, unit = key
    scale, ending = UNITS[unit]
    off = None if ours is None else ours / (paper * scale) - 1
    row = {"table": table, "network": network, "method": method, "figure": what, "printed_unit": unit}
    figures = {"paper": round(paper * scale), "ours": ours, "exact_one_sample": exact}
    row |= {f"{source}_{ending}": value for source, value in figures.items()}
    return {**row, "relative_difference": off, "rule_known": not reason, "reason": reason}


def check(report: Report, row: dict[str, Any]) -> None:
    """Ask for agreement where the rule is known."""
    unit = row["printed_unit"]
    scale, ending = UNITS[unit]
    if row["rule_known"]:
        paper, ours, off = (
            row[f"paper_{ending}"] / scale,
            row[f"ours_{ending}"] / scale,
            row["relative_difference"],
        )
        name = f"table {row['table']}: {row['network']} {row['method']} {row['figure']}"
        asked, got = f"{paper:.4g} {unit} within {TOLERANCE:.0%}", f"{ours:.4g} {unit} ({off:+.2%})"
        report.check(name, asked, got, abs(off) <= TOLERANCE)


def show(figures: Sequence[dict[str, Any]]) -> None:
    """Print one table for each of the paper's, then the reasons."""
    columns = [
        "network",
        "method",
        "figure",
        "unit",
        "paper",
        "ours",
        "exact, one sample",
        "difference",
        "note",
    ]
    for table, title in TITLES.items():
        chosen = [row for row in figures if row["table"] == table]
        reasons = list(dict.fromkeys(row["reason"] for row in chosen if row["reason"]))
        cells: list[list[object]] = []
        for row in chosen:
            off, reason = row["relative_difference"], row["reason"]
            scale, ending = UNITS[row["printed_unit"]]
            values = [row[f"{source}_{ending}"] for source in ("paper", "ours", "exact_one_sample")]
            cells.append([row["network"], row["method"], row["figure"], row["printed_unit"]])
            cells[-1] += [None if value is None else value / scale for value in values]
            cells[-1] += [
                None if off is None else f"{off:+.2%}",
                f"({reasons.index(reason) + 1})" if reason else "",
            ]
        print_table(f"Table {table}: {title}", columns, cells)
        for position, reason in enumerate(reasons, start=1):
            print(f"  ({position}) {reason}")


if __name__ == "__main__":
    sys.exit(main())
