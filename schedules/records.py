"""Tuned knobs: JSON files in ``records/<core>/``, found by a hash of what a kernel computes."""

from __future__ import annotations

import hashlib
import json
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
from tvm_tinytrain.schedules.knobs import DEFAULTS, Knobs
from tvm_tinytrain.schedules.runtime_rows import RUNTIME_ROWS
from tvm_tinytrain.schedules.streamed import streamed
from tvm_tinytrain.schedules.window_weights import window_weights
from tvm_tinytrain.schedules.windows import windows

KnobRule = Callable[..., Schedule | None]
TUNABLE: tuple[tuple[str, KnobRule], ...] = (
    ("streamed", streamed),
    ("gemm", gemm),
    ("windows", windows),
    ("window_weights", window_weights),
)
"""Rules with knobs, by the name that records use, in the order in which they are asked."""
FORMAT = 1
_NOT_THE_LOOPS = ("update", "low", "high", "bias", "compact_weight")
"""Parameters that change what is done with a sum, but hardly which tile is best."""

_CHOSEN = ("tile_first", "tile_depthwise", "tile_project", "lanes")


@dataclass(frozen=True)
class Record:
    """The best ``knobs`` of a rule for a workload; ``cost`` and that of the rule's own choice, in ``unit``."""

    workload: str
    kernel: str
    rule: str
    knobs: dict[str, int]
    cost: float
    default_cost: float
    unit: str


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
    """The name of the folder of records for a target."""
    return str(target.attrs.get("mcpu") or "host")


def records_folder() -> Path:
    """Where records lie that come with this package."""
    return Path(__file__).parent / "records"


def save_records(path: Path, records: Iterable[Record], *, command: str, versions: Mapping[str, str]) -> None:
    """Writes a file of records, sorted, whole or not at all, with the command that made them."""
    rows = [asdict(r) for r in sorted(records, key=lambda r: (r.kernel, r.workload))]
    content = {"format": FORMAT, "command": command, "versions": dict(versions), "records": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)


def read_records(path: Path) -> list[Record]:
    """The records of one file; ArchiveError where it is none, or of another format."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, rows = content["format"], content["records"]
        if found != FORMAT:
            raise ValueError(f"format {found}")
        return [Record(**row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "make it with `tinytrain tune`"
        raise ArchiveError("records", str(path), error, f"records of format {FORMAT}", hint) from error


def load_records(place: str | Path) -> dict[str, Record]:
    """The records of a file, or of all JSON files of a folder, by workload; of two for one workload the cheaper one counts."""
    path = Path(place)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    found: dict[str, Record] = {}
    for record in (r for file in files for r in read_records(file)):
        if record.workload not in found or record.cost < found[record.workload].cost:
            found[record.workload] = record
    return found


@cache
def shipped_records(core: str) -> Mapping[str, Record]:
    """The records of this package for a core, by workload; empty where there are none."""
    folder = records_folder() / core
    return load_records(folder) if folder.is_dir() else {}


class Tuned:
    """A rule that answers where a record exists: ``records`` by workload, None for those of this package."""

    def __init__(self, records: Mapping[str, Record] | None = None) -> None:
        self.records = records

    def __call__(self, func: tirx.PrimFunc, target: tvm.target.Target) -> Schedule | None:
        """The schedule of the record's rule with the record's knobs."""
        if kind_of(func) is None or RUNTIME_ROWS in func.attrs:
            return None
        known = shipped_records(core_of(target)) if self.records is None else self.records
        record = known.get(workload_key(func)) if known else None
        if record is None:
            return None
        return dict(TUNABLE)[record.rule](func, target, Knobs(record.knobs))
