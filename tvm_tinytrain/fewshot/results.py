"""Records of tasks: kept in a JSON file that a run can go on from, summarised with intervals, printed."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nan, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.fewshot.tasks import Outcome, name_of
from tvm_tinytrain.whole_file import whole_file

_FORMAT = 2
Task = tuple[str, str, str, int]
"""Network, domain, sampler, episode."""


@dataclass(frozen=True)
class OfTask:
    """Something about one task. episode: its number, the same for all methods."""

    network: str
    domain: str
    sampler: str
    episode: int

    @property
    def task(self) -> Task:
        """Which task it is."""
        return self.network, self.domain, self.sampler, self.episode


@dataclass(frozen=True)
class Record(OfTask):
    """One method on one task. ways, support: of the task. rate_by: what its rate was chosen for (`tasks.RATE_BY`)."""

    ways: int
    support: int
    rate_by: str
    outcome: Outcome

    @property
    def key(self) -> tuple[Task, str, str]:
        """What makes a record unique."""
        return self.task, self.outcome.method, self.rate_by


@dataclass(frozen=True)
class HeldOut(OfTask):
    """What a task's held-out support samples say of the rates. losses: {method: {rate: cross-entropy}}.

    fits_nothing: methods that had no channel to train within the budgets, so that every rate left the network as it is.
    """

    losses: Mapping[str, Mapping[str, float]]
    fits_nothing: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """Mean over the tasks of one network, domain, sampler, method, and choice of the rate.

    interval: half the width of the 95 % interval, 1.96 standard errors (None for one task). gain: mean difference
    to "none" on the same tasks, and its interval. Costs are means; peak_bytes is the largest memory_bytes.
    """

    network: str
    domain: str
    sampler: str
    method: str
    rate_by: str
    tasks: int
    accuracy: float
    interval: float | None
    gain: float | None
    gain_interval: float | None
    memory_bytes: float
    peak_bytes: int
    backward_macs: float
    seconds: float


@dataclass
class Results:
    """All records of a run, what was held out, and the options that they were made with."""

    options: Mapping[str, Any]
    records: list[Record] = field(default_factory=list)
    held_out: list[HeldOut] = field(default_factory=list)

    def done(self) -> dict[tuple[Task, str, str], float]:
        """{key of what is there: its rate}."""
        return {record.key: record.outcome.rate for record in self.records}

    def add(self, records: Iterable[Record], held_out: Iterable[HeldOut]) -> None:
        """Take what is not there yet."""
        keys, tasks = {r.key for r in self.records}, {h.task for h in self.held_out}
        self.records += {r.key: r for r in records if r.key not in keys}.values()
        self.held_out += {h.task: h for h in held_out if h.task not in tasks}.values()

    def save(self, path: Path) -> None:
        """Write the file whole or not at all; ArchiveError where it cannot be written."""
        whole = {
            "format": _FORMAT,
            "options": self.options,
            "held_out": [asdict(h) for h in self.held_out],
            "records": [asdict(r) for r in self.records],
        }
        text = json.dumps(_null_for_no_number(whole), allow_nan=False)
        try:
            with whole_file(path) as part:
                part.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            hint = "make room there, or name another file; what is in it stays"
            raise ArchiveError("evaluate", str(path), error, "a writable path", hint) from error

    @classmethod
    def load(cls, path: Path, options: Mapping[str, Any]) -> Results:
        """Read a file of the same options, or begin anew where there is none.

        Raises ArchiveError where it is damaged, or was made with other options.
        """
        hint = "remove it, or name another file"
        try:
            if not path.exists():
                return cls(options)
            raw = json.loads(path.read_text(encoding="utf-8"))
            for kind, rules in _RULES.items():
                for number, one in enumerate(raw[kind]):
                    _check(f"{kind} {number}", one, rules)
            records = [Record(**{**r, "outcome": _outcome(r["outcome"])}) for r in raw["records"]]
            held_out = [
                HeldOut(
                    **{
                        **h,
                        "losses": _held_out(h["losses"]),
                        "fits_nothing": tuple(h.get("fits_nothing", ())),
                    }
                )
                for h in raw["held_out"]
            ]
            found = dict(raw["options"])
        except (OSError, AttributeError, ValueError, KeyError, TypeError) as error:
            raise ArchiveError("evaluate", str(path), error, "results of this program", hint) from error
        if json.loads(json.dumps(options)) != found:
            differing = sorted(
                k for k in {*options, *found} if json.loads(json.dumps(options.get(k))) != found.get(k)
            )
            same = "give the same options, or name another file"
            raise ArchiveError(
                "evaluate", str(path), f"other {', '.join(differing)}", "the same options", same
            )
        for thing, (names, allowed) in _names(found, records, held_out).items():
            if names - allowed:
                unknown, known = (", ".join(sorted(n)) for n in (names - allowed, allowed))
                raise ArchiveError("evaluate", str(path), f"{thing} {unknown}", known, hint)
        return cls(options, records, held_out)

    def fits_nothing(self) -> dict[str, int]:
        """{method: tasks on which no channel fitted its budgets}, whatever rate was chosen for these; methods of none are left out."""
        tasks = {(r.outcome.method, r.task) for r in self.records if r.outcome.fits_nothing}
        tasks |= {(method, held.task) for held in self.held_out for method in held.fits_nothing}
        return dict(sorted(Counter(method for method, _ in tasks).items()))

    def rows(self) -> list[Row]:
        """Summary by network, sampler, domain, method and choice of the rate, in the order of the records."""
        plain = {r.task: r.outcome.accuracy for r in self.records if r.outcome.method == "none"}
        found: dict[tuple[str, str, str, str, str], list[Record]] = {}
        for record in self.records:
            key = (record.network, record.sampler, record.domain, record.outcome.method, record.rate_by)
            found.setdefault(key, []).append(record)
        return [_row(key, members, plain) for key, members in found.items()]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_amount(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 <= value < inf


def _is_loss(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _all(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(good, value))


def _each(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(good, value.values()))


_Rules = Mapping[str, "Callable[[Any], bool] | _Rules"]
_OF_TASK: _Rules = {"network": _is_text, "domain": _is_text, "sampler": _is_text, "episode": _is_count}
_OUTCOME: _Rules = {
    "method": _is_text,
    "accuracy": lambda value: _is_amount(value) and value <= 1.0,
    "rate": _is_amount,
    "losses": _all(_is_loss),
    "layers": _each(_is_count),
    **dict.fromkeys(("memory_bytes", "backward_macs", "trained_weights"), _is_count),
    "seconds": _is_amount,
}
_RULES: Mapping[str, _Rules] = {
    "records": {
        **_OF_TASK, "ways": _is_count, "support": _is_count, "rate_by": _is_text, "outcome": _OUTCOME,
    },
    "held_out": {**_OF_TASK, "losses": _each(_each(_is_loss)), "fits_nothing": _all(_is_text)},
}  # fmt: skip
"""What the values in a file are: what is none would reach the tables, or end a run in the middle."""


def _check(where: str, raw: Any, rules: _Rules) -> None:
    """ValueError for the first value that cannot be; one that is not there is found when the record is made."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: {raw!r}")
    for key, rule in rules.items():
        if key not in raw:
            continue
        if isinstance(rule, Mapping):
            _check(f"{where}: {key}", raw[key], rule)
        elif not rule(raw[key]):
            raise ValueError(f"{where}: {key} {raw[key]!r}")


def _names(
    options: Mapping[str, Any], records: Sequence[Record], held_out: Sequence[HeldOut]
) -> dict[str, tuple[set[str], set[str]]]:
    """{what: (names in the file, those that the options have)}, of what the options tell."""
    tasks, told = [*records, *held_out], [losses for h in held_out for losses in h.losses.values() if losses]
    methods = {r.outcome.method for r in records} | {
        m for h in held_out for m in (*h.losses, *h.fits_nothing)
    }
    adapt = options.get("adapt", {})
    rates = [_rates(map(name_of, adapt["rates"]))] if "rates" in adapt else None
    found: dict[str, tuple[set[str], Any]] = {
        "network": ({t.network for t in tasks}, [options["network"]] if "network" in options else None),
        "domain": ({t.domain for t in tasks}, options.get("datasets")),
        "sampler": ({t.sampler for t in tasks}, options.get("samplers")),
        "method": (methods, options.get("libraries")),
        "choice of the rate by": ({r.rate_by for r in records}, adapt.get("rate_by")),
        "losses at": ({_rates(losses) for losses in told}, rates),
    }
    return {thing: (names, set(allowed)) for thing, (names, allowed) in found.items() if allowed is not None}


def _rates(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _outcome(raw: Mapping[str, Any]) -> Outcome:
    return Outcome(**{**raw, "losses": tuple(map(_number, raw["losses"]))})


def _held_out(raw: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    return {method: {rate: _number(v) for rate, v in losses.items()} for method, losses in raw.items()}


def _number(value: float | None) -> float:
    return nan if value is None else value


def _null_for_no_number(value: Any) -> Any:
    """JSON has no word for what a loss is when a rate was far too high."""
    if isinstance(value, Mapping):
        return {k: _null_for_no_number(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_for_no_number(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _row(
    key: tuple[str, str, str, str, str],
    members: Sequence[Record],
    plain: Mapping[Task, float],
) -> Row:
    network, sampler, domain, method, rate_by = key
    outcomes = [m.outcome for m in members]
    accuracy = [o.accuracy for o in outcomes]
    gains = [m.outcome.accuracy - plain[m.task] for m in members if m.task in plain]
    return Row(
        network, domain, sampler, method, rate_by, len(members), fmean(accuracy), interval(accuracy),
        fmean(gains) if gains else None, interval(gains) if gains else None,
        fmean(o.memory_bytes for o in outcomes), max(o.memory_bytes for o in outcomes),
        fmean(o.backward_macs for o in outcomes), fmean(o.seconds for o in outcomes),
    )  # fmt: skip


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of the mean: 1.96 · s / √n; None for fewer than two values."""
    return 1.96 * stdev(values) / sqrt(len(values)) if len(values) > 1 else None


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "network": lambda r: r.network,
    "sampler": lambda r: r.sampler,
    "domain": lambda r: r.domain,
    "method": lambda r: r.method,
    "rate by": lambda r: r.rate_by,
    "tasks": lambda r: str(r.tasks),
    "accuracy %": lambda r: f"{100 * r.accuracy:.1f}",
    "± 95 %": lambda r: "–" if r.interval is None else f"{100 * r.interval:.1f}",
    "gain": lambda r: "–" if r.gain is None else f"{100 * r.gain:+.1f}",
    "± gain": lambda r: "–" if r.gain_interval is None else f"{100 * r.gain_interval:.1f}",
    "memory KiB": lambda r: f"{r.memory_bytes / 1024:.1f}",
    "backward MMACs": lambda r: f"{r.backward_macs / 1e6:.2f}",
}


def cells(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table."""
    return list(_COLUMNS), [[make(row) for make in _COLUMNS.values()] for row in rows]


def as_text(rows: Iterable[Row]) -> str:
    """A table in plain text, columns aligned."""
    heads, body = cells(rows)
    widths = [max(len(line[i]) for line in [heads, *body]) for i in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in [heads, *body]
    ]
    return "\n".join(lines)


def as_csv(rows: Iterable[Row]) -> str:
    """The same with all figures, one row for each row of the table."""
    out = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(out, list(asdict(row)), lineterminator="\n")
            writer.writeheader()
        writer.writerow(asdict(row))
    return out.getvalue()
