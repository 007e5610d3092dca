"""Pictures of a report: nothing covers what they show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tvm_tinytrain as tt
from tvm_tinytrain.reporting import charts
from tvm_tinytrain.selection import FisherMap

PLAN = tt.UpdatePlan.from_channels({0: (0, 3), 2: (1,)})


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, laid out."""
    drawn: list[Any] = []

    def keep(figure: Any) -> bytes:
        figure.draw_without_rendering()
        drawn.append(figure)
        return b""

    monkeypatch.setattr(charts, "_png", keep)
    return drawn


def test_the_legend_of_costs_covers_no_bar(figures: list[Any]) -> None:
    layers = [{"id": i, "macs": 1000 - i, "weight_shape": (40 - 10 * i, 30, 3, 3)} for i in range(3)]
    charts.layer_costs(layers, PLAN)
    charts.layer_costs(layers, None, candidates=(1, 2))
    for figure in figures:
        above, below = figure.axes
        legend = below.get_legend().get_window_extent()
        bars = [patch.get_window_extent() for axes in (above, below) for patch in axes.patches]
        assert len(bars) == 9 and not any(legend.overlaps(bar) for bar in bars)


def test_trained_channels_are_underlined_as_wide_as_their_cells(figures: list[Any]) -> None:
    potential = {i: np.linspace(1, 0.1, count, dtype=np.float32) for i, count in enumerate((4, 8, 16))}
    charts.fisher_map(FisherMap(potential), PLAN)
    found = figures[0].axes[0].collections
    boxes = [path.get_extents() for bars in found for path in bars.get_paths()]
    assert [(box.x0, box.width) for box in boxes] == [(0.0, 0.25), (0.75, 0.25), (0.0625, 0.0625)]


@pytest.mark.parametrize(("domains", "lines"), [(1, 1), (6, 1), (40, 6)])
def test_many_domains_stand_in_lines_below_each_other(figures: list[Any], domains: int, lines: int) -> None:
    names = [f"domain {i} of a $ long name" for i in range(domains)]
    methods = ("none", "lastlayer", "tinytrain")
    charts.accuracy(
        [{"domain": d, "method": m, "accuracy": 0.5, "interval": 0.1} for d in names for m in methods]
    )
    figure = figures[0]
    assert figure.get_figwidth() <= 14 and len(figure.axes) == lines
    labels = [text for axes in figure.axes for text in axes.get_xticklabels()]
    shown = [text.get_text().replace("\n", " ") for text in labels]
    assert shown == ([*names, "mean"] if domains > 1 else names)
    assert sum(len(axes.patches) for axes in figure.axes) == len(shown) * len(methods)
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    widths = [patch.get_window_extent().width for axes in figure.axes for patch in axes.patches]
    assert max(widths) <= 1.01 * min(widths)  # the last line, which is shorter, has no broader bars
