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


def test_means_are_over_what_all_methods_have(figures: list[Any]) -> None:
    """A method that was not run on the hard domains would look better than it is."""
    scores = {
        ("A", "none"): 0.5,
        ("B", "none"): 0.1,
        ("C", "none"): 0.3,
        ("A", "exact"): 0.6,
        ("C", "exact"): 0.2,
    }
    rows = [{"domain": d, "method": m, "accuracy": a, "interval": 0.1} for (d, m), a in scores.items()]
    assert charts.shared_domains(rows) == ["A", "C"]
    charts.accuracy(rows)
    charts.accuracy(rows[:2] + rows[3:4])
    labels = [[text.get_text() for text in f.axes[0].get_xticklabels()] for f in figures]
    assert labels == [["A", "B", "C", "mean of the 2 that\nall have"], ["A", "B"]]
    heights = [patch.get_height() for patch in figures[0].axes[0].patches]
    assert heights[3] == pytest.approx(40) == heights[7]


def test_a_name_that_the_font_lacks_is_a_number(figures: list[Any]) -> None:
    names = ["a$b", "花", "Ünï"]
    charts.accuracy([{"domain": d, "method": "none", "accuracy": 0.5, "interval": None} for d in names])
    labels = [text.get_text() for text in figures[0].axes[0].get_xticklabels()]
    assert labels == ["a$b", "domain 2", "Ünï", "mean"]


def test_points_without_neighbours_are_dots_and_iterations_are_whole(figures: list[Any]) -> None:
    nan = float("nan")
    charts.loss_curve([1.5], [0.5])
    charts.loss_curve([1.5, 1.2, nan, nan, 0.9], ())
    for figure, dots in zip(figures, ([1], [5]), strict=True):
        points = figure.axes[0].lines[1]
        assert points.get_marker() == "o" and list(points.get_xdata()) == dots
        low, high = figure.axes[0].get_xlim()
        ticks = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
        assert ticks and all(tick == int(tick) for tick in ticks)


def test_one_layer_has_no_halves(figures: list[Any]) -> None:
    charts.layer_costs([{"id": 0, "macs": 10, "weight_shape": (4, 3, 1, 1)}], None)
    assert all(tick == int(tick) for tick in figures[0].axes[1].get_xticks())


@pytest.mark.parametrize("layers", [1, 2, 5, 6])
def test_the_scale_of_a_fisher_map_is_named_whole(figures: list[Any], layers: int) -> None:
    charts.fisher_map(FisherMap({i: np.ones(3, np.float32) for i in range(layers)}), None)
    label = figures[0].axes[1].yaxis.label.get_window_extent()
    whole = figures[0].bbox
    assert label.y0 >= 0 and label.y1 <= whole.y1 and label.x1 <= whole.x1


@pytest.mark.parametrize(("potential", "shown"), [(0.0, -1.0), (1e-45, 0.0), (3.0, 0.0)])
def test_equal_potentials_look_equal(figures: list[Any], potential: float, shown: float) -> None:
    charts.fisher_map(FisherMap({i: np.full(3, potential, np.float32) for i in (0, 5)}), None)
    for image in figures[0].axes[0].images:
        assert np.array(image.get_array()).tolist() == [[shown] * 3]
        assert image.get_clim() == pytest.approx((-1.0, 0.0))
