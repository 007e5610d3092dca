"""A memory plan for the eye: as text for a terminal, as SVG or PNG for a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvm_tinytrain.errors import ToolMissingError
from tvm_tinytrain.memory.lower_bound import lower_bound_peak
from tvm_tinytrain.plan import Buffer, MemoryPlan, MemoryProblem

_MARKS = "#*+=o:~%x."
# Okabe and Ito's palette: told apart by colour-blind readers too.
_COLOURS = (
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#D55E00",
    "#999999",
    "#CC79A7",
    "#0072B2",
    "#332288",
    "#AA4499",
    "#F0E442",
)
# A kind looks the same in every picture: these take marks and colours in this order, others what is left.
_ORDER = (
    "activation", "weight", "optimizer state", "gradient", "workspace", "plan", "input", "fisher", "label", "output",
)  # fmt: skip


def _look(kinds: Sequence[str], looks: Sequence[str]) -> dict[str, str]:
    """{kind: mark or colour}."""
    look = {kind: looks[i] for i, kind in enumerate(_ORDER) if kind in kinds}
    others = [kind for kind in kinds if kind not in look]
    free = [x for x in looks if x not in look.values()]
    return look | {
        kind: free[i % len(free)] if free else looks[i % len(looks)] for i, kind in enumerate(others)
    }


def bytes_by_kind(buffers: Sequence[Buffer], step: int) -> dict[str, int]:
    """Return {kind: bytes live at a program step}, with all kinds of the buffers, in alphabetical order."""
    live = dict.fromkeys(sorted({buffer.kind for buffer in buffers}), 0)
    for buffer in buffers:
        if buffer.lower <= step < buffer.upper:
            live[buffer.kind] += buffer.size
    return live


def _steps(problem: MemoryProblem) -> list[int]:
    """The program steps at which the live set changes, in order."""
    return sorted({b.lower for b in problem.buffers} | {b.upper for b in problem.buffers})


def _kinds(rows: Sequence[dict[str, int]]) -> list[str]:
    """The kinds of all rows, what changes least first: it makes a level floor for what comes and goes."""
    change = {kind: max(row[kind] for row in rows) - min(row[kind] for row in rows) for kind in rows[0]}
    return sorted(change, key=lambda kind: (change[kind], kind))


def text_plan(problem: MemoryProblem, plan: MemoryPlan, width: int = 100) -> str:
    """Draw the bytes live over the program's steps, one row for each change, a mark for each kind.

    A row is scaled so that the peak ends at the right edge, marked `|`; the lower bound is marked `!` where
    it differs. `>` points at the row with the most live bytes. At most 40 rows: of neighbours the fullest.
    width: columns of the picture.
    """
    if not problem.buffers:
        return "memory plan: no buffers"
    rows = [(step, bytes_by_kind(problem.buffers, step)) for step in _steps(problem)[:-1]]
    kinds = _kinds([live for _, live in rows])
    mark = _look(kinds, _MARKS)
    fullest = lower_bound_peak(problem).step
    group = -(-len(rows) // 40)
    rows = [
        max(rows[at : at + group], key=lambda row: (row[0] == fullest, sum(row[1].values())))
        for at in range(0, len(rows), group)
    ]
    label = max(len(str(step)) for step, _ in rows)
    number = len(f"{plan.peak}")
    columns = max(width - label - number - 6, 10)
    lines = [_summary(problem, plan), "  ".join(f"{mark[kind]} {kind}" for kind in kinds)]
    bound_at = round(plan.lower_bound * columns / plan.peak)
    for step, live in rows:
        bar, total = "", 0
        for kind in kinds:
            total += live[kind]
            bar += mark[kind] * (round(total * columns / plan.peak) - len(bar))
        bar = bar.ljust(columns)
        if bound_at < columns and bar[bound_at] == " ":
            bar = f"{bar[:bound_at]}!{bar[bound_at + 1 :]}"
        lines.append(f"{'>' if step == fullest else ' '}{step:>{label}} {bar}| {total:>{number}}")
    return "\n".join(lines)


def _summary(problem: MemoryProblem, plan: MemoryPlan) -> str:
    text = (
        f"memory plan: {len(problem.buffers)} buffers, peak {plan.peak} bytes, "
        f"lower bound {plan.lower_bound} bytes ({plan.peak / plan.lower_bound:.4f})"
    )
    return text if problem.capacity is None else f"{text}, capacity {problem.capacity} bytes"


def plot_plan(problem: MemoryProblem, plan: MemoryPlan, path: str | Path) -> None:
    """Write a picture of the plan; the suffix of `path` says the format (.svg, .png, .pdf).

    Above: every buffer as a rectangle of steps x bytes. Below: the bytes live at each step, stacked by kind.
    Raises ToolMissingError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch, Rectangle
    except ImportError as error:
        raise ToolMissingError(
            "report",
            "matplotlib",
            "not installed",
            "matplotlib >= 3.8",
            "pip install 'tvm_tinytrain[report]'",
        ) from error
    steps = _steps(problem) or [0, 1]
    sums = [bytes_by_kind(problem.buffers, step) for step in steps]
    kinds = _kinds(sums[:-1])
    colour = _look(kinds, _COLOURS)
    figure = Figure(figsize=(11, 8), layout="constrained")
    layout, live = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for buffer in problem.buffers:
        layout.add_patch(
            Rectangle(
                (buffer.lower, plan[buffer.name] / 1024),
                buffer.upper - buffer.lower,
                buffer.size / 1024,
                facecolor=colour[buffer.kind],
                edgecolor="white",
                linewidth=0.4,
            )
        )
    if kinds:
        live.stackplot(
            steps,
            [[row[kind] / 1024 for row in sums] for kind in kinds],
            step="post",
            colors=[colour[kind] for kind in kinds],
        )
    for axes in (layout, live):
        axes.axhline(plan.peak / 1024, color="black", linewidth=1.2)
        axes.axhline(plan.lower_bound / 1024, color="black", linewidth=1.2, linestyle=":")
        axes.set_xlim(steps[0], steps[-1])
        axes.set_ylim(0, max(plan.peak, 1) / 1024 * 1.04)
        axes.spines[["top", "right"]].set_visible(False)
    layout.set_title(_summary(problem, plan) if problem.buffers else "memory plan: no buffers", loc="left")
    layout.set_ylabel("offset (KiB)")
    live.set_ylabel("live (KiB)")
    live.set_xlabel("program step")
    handles = [Patch(facecolor=colour[kind], label=kind) for kind in kinds]
    handles += [
        layout.axhline(-1, color="black", linewidth=1.2, label="peak"),
        layout.axhline(-1, color="black", linewidth=1.2, linestyle=":", label="lower bound"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 7), frameon=False)
    # A fixed date and salt: the same plan gives the same bytes.
    target = Path(path)
    if target.suffix == ".svg":
        from matplotlib import rc_context

        with rc_context({"svg.hashsalt": "tvm_tinytrain"}):
            figure.savefig(target, metadata={"Date": None})
    else:
        figure.savefig(target, dpi=150)
