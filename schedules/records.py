"""Tuned knobs: JSON files in ``records/<core>/``, found by a hash of what a kernel computes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.schedules.blocks import kind_of, spec_of
from tvm_tinytrain.schedules.gemm import gemm
from tvm_tinytrain.schedules.knobs import DEFAULTS, RecordedKnobs
from tvm_tinytrain.schedules.runtime_rows import RUNTIME_ROWS
from tvm_tinytrain.schedules.streamed import streamed
from tvm_tinytrain.schedules.window_weights import window_weights
from tvm_tinytrain.schedules.windows import windows
from tvm_tinytrain.targets.target import host_core_name
from tvm_tinytrain.whole_file import whole_file

KnobRule = Callable[..., Schedule | None]
TUNABLE: tuple[tuple[str, KnobRule], ...] = (
    ("streamed", streamed),
    ("gemm", gemm),
    ("windows", windows),
    ("window_weights", window_weights),
)
"""Rules with knobs, by the name that records use, in the order in which they are asked."""
FORMAT = 2
_CORE_UNKNOWN = 1
"""The format before, whose files do not say for which core their records are."""
_NOT_THE_LOOPS = ("update", "low", "high", "bias", "compact_weight")
"""Parameters that change what is done with a sum, but hardly which tile is best."""

_HINT = "make it with `tinytrain tune`"
_CHOSEN = ("tile_first", "tile_depthwise", "tile_project", "lanes")


@dataclass(frozen=True)
class Record:
    """The best ``knobs`` of a rule for a workload; ``cost`` and that of the rule's own choice, in ``unit``.

    ``core``: what it was measured on (`core_of`); "" where that is not known, which serves every core. ArchiveError for values that no
    search gives.
    """

    workload: str
    kernel: str
    rule: str
    knobs: dict[str, int]
    cost: float
    default_cost: float
    unit: str
    core: str = ""

    def __post_init__(self) -> None:
        for name in ("workload", "kernel", "rule", "unit", "core"):
            self._check(name, isinstance(getattr(self, name), str), "text")
        self._check("rule", self.rule in dict(TUNABLE), ", ".join(dict(TUNABLE)))
        knobs = isinstance(self.knobs, dict) and all(
            isinstance(k, str) and isinstance(v, int) and not isinstance(v, bool)
            for k, v in self.knobs.items()
        )
        self._check("knobs", knobs, "whole numbers by name")
        for name in ("cost", "default_cost"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._check(name, number and math.isfinite(value) and value >= 0, "a number from 0")

    def _check(self, name: str, right: bool, allowed: str) -> None:
        if not right:
            thing = f"record of {self.workload!r}, {name}"
            raise ArchiveError("records", thing, repr(getattr(self, name)), allowed, _HINT)


def workload_key(func: tirx.PrimFunc) -> str:
    """A hash of a kernel's kind and shape, the same in every process and for every optimizer's numbers."""
    shape = {k: v for k, v in spec_of(func).items() if k not in _NOT_THE_LOOPS}
    if "links" in shape:  # the tiles of a block that streams stand in its parameters
        shape["links"] = [{k: v for k, v in link.items() if k not in _CHOSEN} for link in shape["links"]]
    text = json.dumps([kind_of(func), shape], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tunable_rule(func: tirx.PrimFunc, target: tvm.target.Target) -> tuple[str, KnobRule] | None:
    """The rule with knobs that takes a kernel, None if there is none."""
    if kind_of(func) is None or RUNTIME_ROWS in func.attrs:
        return None
    return next(((name, rule) for name, rule in TUNABLE if rule(func, target, DEFAULTS) is not None), None)


def core_of(target: tvm.target.Target) -> str:
    """The name of a target's core, and of its folder of records."""
    return str(target.attrs.get("mcpu") or host_core_name())


def records_folder() -> Path:
    """Where records lie that come with this package."""
    return Path(__file__).parent / "records"


def save_records(
    path: Path, records: Iterable[Record], *, command: str, versions: Mapping[str, str], board: str
) -> None:
    """Writes a file of records, sorted, whole or not at all, with the command that made them; ArchiveError where it cannot."""
    rows = [asdict(r) for r in sorted(records, key=lambda r: (r.kernel, r.workload))]
    content = {
        "format": FORMAT,
        "command": command,
        "versions": dict(versions),
        "board": board,
        "records": rows,
    }
    try:
        with whole_file(path) as part:
            part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArchiveError("records", str(path), error, "a writable path", "choose another file") from error


def read_records(path: Path) -> list[Record]:
    """The records of one file; ArchiveError where it is none, or of another format."""
    allowed = f"records of format {FORMAT}"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, rows = content["format"], content["records"]
        if type(found) is not int or found not in (_CORE_UNKNOWN, FORMAT):
            raise ValueError(f"format {found!r}")
        if not isinstance(rows, list):
            raise ValueError(f"{type(rows).__name__} in the place of a list")
        return [Record(**row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError("records", str(path), error, allowed, _HINT) from error
    except ArchiveError as error:
        raise ArchiveError("records", f"{path}, {error.thing}", error.found, error.allowed, _HINT) from error


def load_records(place: str | Path) -> list[Record]:
    """The records of a file, or of all JSON files of a folder; ArchiveError where there is none."""
    path = Path(place)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise ArchiveError(
            "records", str(path), "a folder without *.json", "a file or folder of records", _HINT
        )
    return [record for file in files for record in read_records(file)]


def records_for(core: str, records: Iterable[Record]) -> dict[str, Record]:
    """The records that serve a core, by workload; of two for one workload the cheaper one counts.

    ArchiveError where all of them are for other cores, or two for one workload have costs in different units.
    """
    given, found = list(records), dict[str, Record]()
    serving = [r for r in given if r.core in ("", core)]
    if given and not serving:
        others = ", ".join(sorted({r.core for r in given}))
        hint = "tune on a board with this core; records=() uses none"
        raise ArchiveError("records", f"{len(given)} records", f"all for {others}", f"some for {core}", hint)
    for record in serving:
        other = found.setdefault(record.workload, record)
        if other.unit != record.unit:
            thing, units = f"two records of {record.workload}", f"costs in {other.unit} and in {record.unit}"
            raise ArchiveError("records", thing, units, "one unit", "use only the files of one board")
        if record.cost < other.cost:
            found[record.workload] = record
    return found


@cache
def shipped_records(core: str) -> Mapping[str, Record]:
    """The records of this package for a core, by workload; empty where there are none."""
    folder = records_folder() / core
    return records_for(core, load_records(folder)) if folder.is_dir() else {}


class Tuned:
    """A rule that answers where a record exists: ``records`` by workload, None for those of this package."""

    def __init__(self, records: Mapping[str, Record] | None = None) -> None:
        self.records = records

    def __call__(self, func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
        """The schedule of the record's rule with the record's knobs; ArchiveError where the rule does not take them."""
        if kind_of(func) is None or RUNTIME_ROWS in func.attrs:
            return None
        known = shipped_records(core_of(target)) if self.records is None else self.records
        record = known.get(workload_key(func)) if known else None
        if record is None:
            return None
        knobs = RecordedKnobs(record.knobs)
        schedule = dict(TUNABLE)[record.rule](func, target, knobs)
        thing, hint = (
            f"record of {record.workload}, rule {record.rule}",
            "tune again with this version, for this core",
        )
        if schedule is None:
            allowed = "a record of the rule that takes the kernel"
            raise ArchiveError("records", thing, f"a kernel {kind_of(func)}", allowed, hint)
        for name, (value, offered) in knobs.misfits().items():
            allowed = ", ".join(map(str, offered)) or f"no knob {name}"
            raise ArchiveError("records", f"{thing}, knob {name}", value, allowed, hint)
        return schedule
