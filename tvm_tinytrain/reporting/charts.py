"""The pictures of a report, as PNG bytes. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import io
import math
import tempfile
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvm_tinytrain.errors import ToolMissingError
from tvm_tinytrain.memory.picture import plot_plan
from tvm_tinytrain.plan import MemoryPlan, MemoryProblem, UpdatePlan
from tvm_tinytrain.selection import FisherMap

# Okabe and Ito's palette: distinguishable with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
_INK, _FAINT, _MAYBE = "#222222", "#d8d8d8", "#f0b68c"
_WIDEST, _MARGIN = 14.0, 1.1
"""Inches of the widest picture, and those beside its bars. A page shows what is wider too small to read."""


def accuracy(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Grouped bars: domains along the axis, one bar per method, 95 % intervals. rows: of one network and sampler.

    Means are taken over the domains that every method has, if there are several.
    What does not stand side by side within `_WIDEST` goes on below.
    """
    domains = list(dict.fromkeys(r["domain"] for r in rows))
    shared = shared_domains(rows)
    bars = _accuracy_bars(rows, domains, shared)
    shown = [name_in_picture(d, i) for i, d in enumerate(domains)]
    if len(shared) > 1:
        shown.append("mean" if len(shared) == len(domains) else f"mean of the {len(shared)} that all have")
    labels = [textwrap.fill(label, 18) for label in shown]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    room = max(0.21 * len(bars), 0.095 * longest + 0.1)
    lines = math.ceil(len(labels) / max(1, int((_WIDEST - _MARGIN) / room)))
    each = math.ceil(len(labels) / lines)
    figure = _figure(max(7.0, _MARGIN + room * each), 0.8 + 2.6 * lines)
    every = figure.subplots(lines, squeeze=False)[:, 0]
    for line, axes in enumerate(every):
        part = slice(line * each, (line + 1) * each)
        _draw_bars(
            axes, labels[part], {m: (values[part], errors[part]) for m, (values, errors) in bars.items()}
        )
        axes.set_xlim(-0.5, each - 0.5)
    legend = every[0].legend(
        ncols=min(6, len(bars)), loc="lower left", bbox_to_anchor=(0, 1.0), frameon=False
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _png(figure)


_Bars = dict[str, tuple[list[float], list[float]]]
"""{method: (accuracies, half-widths of their intervals)} in per cent."""


def shared_domains(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The domains of which every method has a row: means over others would not compare methods."""
    methods, found = {r["method"] for r in rows}, {(r["domain"], r["method"]) for r in rows}
    domains = dict.fromkeys(r["domain"] for r in rows)
    return [d for d in domains if all((d, m) in found for m in methods)]


def name_in_picture(name: str, index: int) -> str:
    """A domain's name, or its number (index from 0) where the pictures' font lacks a letter of it."""
    _check_matplotlib()
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return name if all(ord(c) in known or c.isspace() for c in name) else f"domain {index + 1}"


def _accuracy_bars(rows: Sequence[Mapping[str, Any]], domains: Sequence[str], shared: Sequence[str]) -> _Bars:
    """The bars of all domains and, of several that are shared, of their mean."""
    bars = {}
    for method in dict.fromkeys(r["method"] for r in rows):
        by_domain = {r["domain"]: r for r in rows if r["method"] == method}
        values = {d: 100 * by_domain[d]["accuracy"] if d in by_domain else np.nan for d in domains}
        known = {d: by_domain[d]["interval"] if d in by_domain else None for d in domains}
        errors = {d: np.nan if e is None else 100 * e for d, e in known.items()}  # one task has no interval
        means: tuple[list[float], list[float]] = [], []
        if len(shared) > 1:
            squares = [errors[d] ** 2 for d in shared]
            means = (
                [float(np.mean([values[d] for d in shared]))],
                [float(np.sqrt(np.sum(squares)) / len(shared))],  # of independent domains
            )
        bars[method] = ([*values.values(), *means[0]], [*errors.values(), *means[1]])
    return bars


def _draw_bars(axes: Any, labels: Sequence[str], bars: _Bars) -> None:
    width, looks = 0.82 / len(bars), method_looks(list(bars))
    for i, (method, (values, errors)) in enumerate(bars.items()):
        at = np.arange(len(labels)) + (i - (len(bars) - 1) / 2) * width
        colour, hatch = looks[method]
        axes.bar(
            at, values, width * 0.92, yerr=errors, color=colour, hatch=hatch, edgecolor="white", linewidth=0.0,
            label=method, ecolor=_INK, capsize=1.5,
        )  # fmt: skip
    axes.set_xticks(np.arange(len(labels)), labels, parse_math=False)  # a name may hold a dollar
    axes.set_ylim(0, 100)
    axes.set_ylabel("accuracy, %")
    _tidy(axes, "y")


def method_looks(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """{method: (colour, hatch)}, no two alike: where colours begin again, bars are hatched. "none" is grey."""
    hues, others = COLOURS[:-1], [m for m in methods if m != "none"]
    looks = {m: (hues[(j + 1) % len(hues)], "/" * 4 * (j // len(hues))) for j, m in enumerate(others)}
    return {m: looks.get(m, (COLOURS[-1], "")) for m in methods}


def memory_plan(problem: MemoryProblem, plan: MemoryPlan) -> bytes:
    """`memory.picture.plot_plan` as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.png"
        plot_plan(problem, plan, path)
        return path.read_bytes()


def fisher_map(fisher: FisherMap, plan: UpdatePlan | None) -> bytes:
    """One strip per candidate layer, a cell per channel: colour is the potential, a bar below it: trained."""
    layers = list(fisher)
    figure = _figure(9.0, 0.9 + 0.31 * len(layers))
    axes = figure.add_subplot()
    potentials = {i: fisher[i].astype(np.float64) for i in layers}  # float32 has no millionth of its least
    whole = np.concatenate(list(potentials.values()))
    top = float(whole.max()) or 1.0
    floor = min(top / 10, max(top * 1e-6, float(whole[whole > 0].min(initial=top))))  # a scale has two ends
    image = None
    for row, layer in enumerate(layers):
        values = np.log10(np.maximum(potentials[layer], floor) / top)
        order = np.argsort(-values, kind="stable")
        box = (0.0, 1.0, row - 0.38, row + 0.2)
        image = axes.imshow(
            values[order][None, :], aspect="auto", extent=box, cmap="viridis", vmin=np.log10(floor / top), vmax=0.0,
            interpolation="nearest",
        )  # fmt: skip
        if plan is not None and layer in plan:
            chosen = np.isin(order, plan[layer].outputs)
            cells = [(i / len(order), 1 / len(order)) for i in np.flatnonzero(chosen)]
            axes.broken_barh(
                cells, (row + 0.24, 0.12), color=COLOURS[5], linewidth=0.8
            )  # seen if narrow, too
    counts = [
        f"{len(plan[i].outputs)}/{len(fisher[i])}" if plan and i in plan else f"0/{len(fisher[i])}"
        for i in layers
    ]
    axes.set_yticks(range(len(layers)), [f"layer {i}  {c}" for i, c in zip(layers, counts, strict=True)])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 1], ["highest potential", "lowest"])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    scale = figure.colorbar(image, ax=axes, pad=0.02)
    if len(layers) < 6:  # the bar is shorter than the words
        scale.set_label("log₁₀ of\npotential\n/ highest", rotation=0, ha="left", va="center")
    else:
        scale.set_label("log₁₀ of potential / highest")
    return _png(figure)


def layer_costs(
    layers: Sequence[Mapping[str, Any]], plan: UpdatePlan | None, candidates: Collection[int] = ()
) -> bytes:
    """Two rows of bars: forward multiply-accumulates, and weights with the trained share, by layer.

    candidates: layers that may be trained, shown where there is no plan yet.
    """
    figure = _figure(9.0, 4.2)
    above, below = figure.subplots(2, 1, sharex=True)
    ids = [layer["id"] for layer in layers]
    above.bar(ids, [layer["macs"] / 1e6 for layer in layers], color=COLOURS[0], width=0.8)
    above.set_ylabel("forward, MMAC")
    weights = [float(np.prod(layer["weight_shape"])) / 1e3 for layer in layers]
    trained = [w * _share(layer, plan) for w, layer in zip(weights, layers, strict=True)]
    below.bar(ids, weights, color=_FAINT, width=0.8, label="frozen")
    if plan is None:
        chosen_from = [
            w if layer["id"] in candidates else 0.0 for w, layer in zip(weights, layers, strict=True)
        ]
        below.bar(ids, chosen_from, color=_MAYBE, width=0.8, label="may be trained")
    else:
        below.bar(ids, trained, color=COLOURS[5], width=0.8, label="trained")
    below.set_ylabel("weights, thousands")
    below.set_xlabel("layer")
    below.legend(
        frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0)
    )  # above: no bar is covered
    for axes in (above, below):
        _tidy(axes, "y")
    _whole_numbers(below)
    return _png(figure)


def loss_curve(losses: Sequence[float], accuracies: Sequence[float]) -> bytes:
    """Loss and accuracy of the pseudo-queries by iteration."""
    figure = _figure(7.0, 3.0)
    axes = figure.add_subplot()
    _line(axes, losses, COLOURS[0], 1.8)
    axes.set_xlim(0.5, len(losses) + 0.5)
    _whole_numbers(axes)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss", color=COLOURS[0])
    _tidy(axes, "y")
    if accuracies:
        right = axes.twinx()
        _line(right, [100 * a for a in accuracies], COLOURS[1], 1.4)
        right.set_ylim(0, 102)
        right.set_ylabel("accuracy, %", color="#a87400")
        right.spines[["top"]].set_visible(False)
    return _png(figure)


def _line(axes: Any, values: Sequence[float], colour: str, width: float) -> None:
    """By iteration, from 1; a point without neighbours, of which a line shows nothing, as a dot."""
    drawn = np.array(values, np.float64)
    steps, known = np.arange(1, len(drawn) + 1), np.isfinite(drawn)
    beside = np.pad(known, 1)
    alone = known & ~beside[:-2] & ~beside[2:]
    axes.plot(steps, np.where(known, drawn, np.nan), color=colour, linewidth=width)
    axes.plot(steps[alone], drawn[alone], color=colour, marker="o", markersize=4, linestyle="none")


def _whole_numbers(axes: Any) -> None:
    """Layers and iterations have no halves."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _share(layer: Mapping[str, Any], plan: UpdatePlan | None) -> float:
    if plan is None or layer["id"] not in plan or not plan[layer["id"]].weight:
        return 0.0
    update = plan[layer["id"]]
    inputs = 1.0 if update.inputs is None else len(update.inputs) / layer["weight_shape"][1]
    return inputs * len(update.outputs) / float(layer["weight_shape"][0])


def _check_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        hint = "pip install 'tvm_tinytrain[report]'"
        raise ToolMissingError(
            "report", "matplotlib", "not installed", "the package matplotlib", hint
        ) from error


def _figure(width: float, height: float) -> Any:
    _check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=130)


def _tidy(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
