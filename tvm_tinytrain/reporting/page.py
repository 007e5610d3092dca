"""The page: sections of text, tables and inline pictures; it loads nothing from anywhere."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tvm_tinytrain.emit.metadata import cache_pool_bytes, entries_in_order
from tvm_tinytrain.emit.trained import candidates, row_bytes, trained_channels, trained_plan
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.memory import load_plan
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.reporting import charts
from tvm_tinytrain.reporting.accuracy_file import check_rows
from tvm_tinytrain.reporting.session_record import SessionRecord
from tvm_tinytrain.whole_file import whole_file

_STYLE = """
.tt { color-scheme: light; font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto;
      max-width: 62rem; padding: .5rem 1rem; }
.tt h1, .tt h2, .tt p, .tt table, .tt pre { color: inherit; }
.tt tbody tr:nth-child(n) { background: none; }
.tt h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
.tt h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
.tt p { margin: .3rem 0 .8rem; }
.tt .note { color: #666; }
.tt .wide { margin: .6rem 0 1.2rem; overflow-x: auto; }
.tt img { max-width: 100%; height: auto; display: block; }
.tt .cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.tt .card { border: 1px solid #ddd; border-radius: .4rem; padding: .5rem .9rem; min-width: 8.5rem; }
.tt .card b { display: block; font-size: 1.25rem; }
.tt .card span { color: #666; font-size: .85rem; }
.tt table { border-collapse: collapse; font-size: .85rem; }
.tt th, .tt td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
.tt th { color: #666; font-weight: 600; }
.tt th.t, .tt td.t { text-align: left; }
.tt details { margin: .4rem 0; }
.tt summary { cursor: pointer; color: #0072B2; }
.tt pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .8rem; }
@media (max-width: 45rem) { .tt img { max-width: none; width: 44rem; } }
"""
"""Every rule is of the class ``tt``, so that a report in a notebook leaves the cells around it alone; what a dark notebook says of text
and rows is said again. On a narrow screen pictures and tables keep a size that can be read, and are scrolled on their own."""


@dataclass(frozen=True)
class _Section:
    name: str
    title: str
    text: str
    picture: bytes | None = None
    table: str = ""


@dataclass(frozen=True)
class Report:
    """What a page shows; every part may be missing.

    module: a `TrainModule`, or one read back by `load`.
    session: of an adaptation of this library; ArchiveError where it was another's.
    accuracy: rows of `fewshot.results.Row` as mappings, or of benchmarks/accuracy.py; ArchiveError for values that cannot be.
    In a notebook the report shows itself.
    """

    module: Any = None
    session: SessionRecord | None = None
    accuracy: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    title: str | None = None

    def __post_init__(self) -> None:
        if self.module is not None and self.session is not None:
            self.session.check_library(self.module.metadata)
        try:
            check_rows(self.accuracy)
        except (TypeError, ValueError) as error:
            hint = "pass what `evaluate` gave, once"
            raise ArchiveError(
                "report", "accuracy", error, "a row for each method and domain", hint
            ) from error

    def html(self) -> str:
        """The whole page."""
        title = html.escape(self.title or (self.module.name if self.module is not None else "adaptation"))
        body = "\n".join(_render(section) for section in self._sections)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head>\n'
            f"<body class=tt><h1>{title}</h1>{self._cards()}\n{body}\n</body></html>\n"
        )

    def _repr_html_(self) -> str:
        return self.fragment()

    def fragment(self) -> str:
        """The page's body with its style, for a notebook's cell."""
        body = "\n".join(_render(section) for section in self._sections)
        return f"<style>{_STYLE}</style><div class=tt>{self._cards()}{body}</div>"

    def write(self, path: str | Path, *, pictures: bool = False) -> list[Path]:
        """Write the page, and with `pictures` each picture as a PNG beside it, all or none; returns the files written."""
        page = Path(path)
        files = {page: self.html().encode()}
        for section in self._sections if pictures else ():
            if section.picture is not None:
                files[page.with_name(f"{page.stem}-{section.name}.png")] = section.picture
        try:
            with ExitStack() as whole:
                for file, content in files.items():
                    whole.enter_context(whole_file(file)).write_bytes(content)
        except OSError as error:
            raise ArchiveError(
                "report", str(page), error, "a writable path", "choose another folder"
            ) from error
        return list(files)

    def _cards(self) -> str:
        if self.module is None:
            return ""
        meta = self.module.metadata
        plan = self._plan()
        memory = meta["memory"]
        backward = meta["macs"].get("step", meta["macs"].get("accumulate", 0)) - meta["macs"].get(
            "predict", 0
        )
        # The totals of a task-adaptive library are those of a plan of all channels; what a plan takes is in the plan.
        most = " with all channels trained" if "adaptive" in meta else ""
        pool = cache_pool_bytes(meta)
        cards = {
            "arena (SRAM)": f"{memory['arena_bytes'] / 1024:,.1f} KiB",
            "constants (flash)": f"{memory['flash_constant_bytes'] / 1024:,.1f} KiB",
            "initial weights (flash)": f"{memory['flash_initial_bytes'] / 1024:,.1f} KiB",
            **({} if not pool else {"cache pool (TT_CACHE_SECTION)": f"{pool / 1024:,.1f} KiB"}),
            f"prediction{most}": f"{meta['macs'].get('predict', 0) / 1e6:,.2f} MMAC",
            f"backward{most}": f"{backward / 1e6:,.2f} MMAC",
        }
        if plan is None:
            cards["layers to choose from, on the device"] = (
                f"{len(_candidates(meta))} of {len(meta['layers'])}"
            )
        else:
            cards["trained layers"] = f"{len(plan)} of {len(meta['layers'])}"
        shown = "".join(f"<div class=card><span>{k}</span><b>{v}</b></div>" for k, v in cards.items())
        name = html.escape(f"{self.module.name}, for {meta['options']['target']}")
        return f"<p class=note>{name}</p><div class=cards>{shown}</div>"

    def _plan(self) -> UpdatePlan | None:
        if self.session is not None and self.session.plan is not None:
            return self.session.plan
        if self.module is None or "adaptive" in self.module.metadata:
            return None
        return trained_plan(self.module.metadata)

    def _channels(self) -> dict[int, str]:
        """What of each layer's channels is trained, or may be."""
        meta, plan = self.module.metadata, self._plan()
        if plan is None or self.session is None or self.session.plan is None:
            return trained_channels(meta)
        counts = {layer["id"]: layer["weight_shape"][0] for layer in meta["layers"]}
        return {i: f"{len(plan[i].outputs) if i in plan else 0}/{n}" for i, n in counts.items()}

    @cached_property
    def _sections(self) -> tuple[_Section, ...]:
        return tuple(self._make_sections())

    def _make_sections(self) -> Iterator[_Section]:
        if self.session is not None and self.session.losses:
            text = "Pseudo-queries of the support set, before each step of the optimizer."
            wrong = sum(not math.isfinite(v) for v in self.session.losses)
            if wrong:
                text += f" In {wrong} of {len(self.session.losses)} iterations the loss is no finite number; the line has gaps there."
            picture = charts.loss_curve(self.session.losses, self.session.accuracies)
            yield _Section("loss", "Adaptation", text, picture)
        if self.session is not None and self.session.fisher is not None:
            text = "Fisher potential of each output channel, sorted within its layer; what was trained is underlined."
            if not any(values.any() for values in self.session.fisher.layers.values()):
                text += " All potentials are 0."
            picture = charts.fisher_map(self.session.fisher, self.session.plan)
            yield _Section("fisher", "Fisher map and selection", text, picture)
        if self.accuracy:
            yield from _accuracy_sections(self.accuracy)
        if self.module is not None:
            yield from self._module_sections()

    def _module_sections(self) -> Iterator[_Section]:
        meta = self.module.metadata
        plan = self._plan()
        text = "Work of each layer in the forward pass, and how much of its weights is trained."
        if plan is None:
            text = (
                "Work of each layer in the forward pass, and its weights; the device chooses what it trains."
            )
        others = meta["training"]["others"]
        if others:
            text += f" Trained beside the layers: {', '.join(others)}."
        yield _Section(
            "layers",
            "Cost by layer",
            text,
            charts.layer_costs(meta["layers"], plan, _candidates(meta)),
            _layer_table(meta, self._channels()),
        )
        for entry, stored in entries_in_order(meta):
            problem, plan_of = load_plan(stored)
            text = (
                f"{len(problem.buffers)} buffers over {max(b.upper for b in problem.buffers)} steps; peak "
                f"{plan_of.peak:,} bytes, no plan can do with less than {plan_of.lower_bound:,}."
            )
            if "adaptive" in meta:
                text += " Behind it lie the trained channels' rows, and the cache of the frozen prefix where it has no pool."
            picture = charts.memory_plan(problem, plan_of)
            yield _Section(f"memory-{entry}", f"Memory plan of {entry}", text, picture)
        roles = meta["memory"]["bytes_by_role"]
        rows = [
            [role, f"{size:,}"] for role, size in sorted(roles.items(), key=lambda item: (-item[1], item[0]))
        ]
        text = "In arena and flash; activations and workspaces, which share bytes, stand in the plans above."
        if "adaptive" in meta:
            rows += [[f"{what} of trained channels", f"{size:,}"] for what, size in row_bytes(meta).items()]
            text += " What trained channels take is said for all of them; it lies behind the activations."
        options = html.escape(
            json.dumps({"options": meta["options"], "versions": meta["versions"]}, indent=1, sort_keys=True)
        )
        table = (
            _table(["tensors", "bytes"], rows)
            + f"<details><summary>options and versions</summary><pre>{options}</pre></details>"
        )
        yield _Section("bytes", "Bytes by role", text, None, table)


def _accuracy_sections(rows: Sequence[Mapping[str, Any]]) -> Iterator[_Section]:
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["sampler"], row["rate_by"]), []).append(row)
    for number, ((network, sampler, by), members) in enumerate(groups.items()):
        tasks = sorted({m["tasks"] for m in members})
        text = f"Mean over {'–'.join(map(str, tasks))} tasks for each domain, with 95 % intervals."
        if tasks == [1]:
            text = "One task for each domain: there is no interval, and a difference says little."
        domains = list(dict.fromkeys(m["domain"] for m in members))
        shared = charts.shared_domains(members)
        if len(shared) < len(domains):
            text += f" Not every method has all {len(domains)} domains"
            text += (
                f"; means are over the {len(shared)} that all have."
                if len(shared) > 1
                else ": there is no mean."
            )
        shown = {charts.name_in_picture(d, i): d for i, d in enumerate(domains)}
        numbered = [f"{label} is {name}" for label, name in shown.items() if label != name]
        if numbered:
            text += f" The picture's font lacks letters: {', '.join(numbered)}."
        heads = ["domain", "method", "accuracy %", "± 95 %", "gain", "memory KiB", "backward MMAC"]
        body = [
            [
                m["domain"], m["method"], f"{100 * m['accuracy']:.1f}", _percent(m["interval"]), _percent(m["gain"], "+"),
                f"{m['memory_bytes'] / 1024:,.1f}", f"{m['backward_macs'] / 1e6:.2f}",
            ]
            for m in members
        ]  # fmt: skip
        table = f"<details><summary>figures</summary>{_table(heads, body, text_columns=2)}</details>"
        name = f"accuracy-{number}" if len(groups) > 1 else "accuracy"
        yield _Section(
            name, f"Accuracy: {network}, {sampler}, rate by {by}", text, charts.accuracy(members), table
        )


def _candidates(meta: Mapping[str, Any]) -> set[int]:
    """Layers that a task-adaptive library chooses among; none of another library."""
    return {candidate["layer"] for candidate in candidates(meta)}


def _percent(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{100 * value:{sign}.1f}"


def _layer_table(meta: Mapping[str, Any], trained: Mapping[int, str]) -> str:
    rows = []
    for layer in meta["layers"]:
        shape = "×".join(str(d) for d in layer["weight_shape"])
        rows.append([str(layer["id"]), layer["weight"], shape, f"{layer['macs']:,}", trained[layer["id"]]])
    heads = ["layer", "weight", "shape", "forward MACs", "trained channels"]
    return f"<details><summary>all layers</summary>{_table(heads, rows, text_columns=2)}</details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    head = "".join(
        f"<th{' class=t' if i < text_columns else ''}>{html.escape(h)}</th>" for i, h in enumerate(heads)
    )
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=t' if i < text_columns else ''}>{html.escape(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _render(section: _Section) -> str:
    picture = ""
    if section.picture is not None:
        data = base64.b64encode(section.picture).decode("ascii")
        picture = f'<div class=wide><img alt="{html.escape(section.title)}" src="data:image/png;base64,{data}"></div>'
    return f"<section><h2>{html.escape(section.title)}</h2><p>{html.escape(section.text)}</p>{picture}{section.table}</section>"
