"""What was measured, kept on disk line by line: a search that was killed answers from it and goes on where it ended."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_tinytrain.errors import ArchiveError

_HINT = "use another folder, or remove this one"


@dataclass(frozen=True)
class Outcome:
    """What measuring a candidate gave: its cost, or why it failed."""

    cost: float | None
    failure: str = ""


class Journal:
    """Outcomes by knobs, in a file of one JSON object a line; a line that was cut off or is damaged is dropped.

    ``head`` describes the search; a file with another one is an error, because its outcomes mean something else. ``finished`` is the
    most trials with which the search came to its end; a search that lost a line has to come to it again. ArchiveError where the file
    cannot be read or written.
    """

    def __init__(self, path: Path, head: Mapping[str, object]) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self.finished = 0
        text = json.dumps({"search": dict(head)}, sort_keys=True)
        try:
            *whole, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        except OSError as error:
            raise ArchiveError("tune", str(path), error, "a readable file", _HINT) from error
        if whole and whole[0].strip() != text.encode():
            raise _another_search(path, whole[0], text)
        entries = [_entry(line) for line in whole[1:]]
        for entry in (e for e in entries if e is not None):
            if "finished" in entry:
                self.finished = max(self.finished, entry["finished"])
            else:
                self.outcomes[entry["knobs"]] = Outcome(entry["cost"], entry["failure"])
        if None in entries:
            self.finished = 0
        kept = [line for line, entry in zip(whole[1:], entries, strict=True) if entry is not None]
        partial = path.with_suffix(".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(b"".join(line + b"\n" for line in [text.encode(), *kept]))
            partial.replace(path)
        except OSError as error:
            raise _not_written(path, error) from error

    def get(self, knobs: Mapping[str, int]) -> Outcome | None:
        """The outcome of knobs that were measured before."""
        return self.outcomes.get(_key(knobs))

    def add(self, knobs: Mapping[str, int], outcome: Outcome) -> None:
        """Keeps an outcome: it is on disk when this returns."""
        key = _key(knobs)
        self.outcomes[key] = outcome
        self._append({"knobs": key, "cost": outcome.cost, "failure": outcome.failure})

    def finish(self, trials: int) -> None:
        """Says that a search of so many trials is at its end: a second one need not decide anything again."""
        if trials > self.finished:
            self.finished = trials
            self._append({"finished": trials})

    def _append(self, entry: Mapping[str, object]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _not_written(self.path, error) from error

    def best(self) -> tuple[dict[str, int], float] | None:
        """The cheapest knobs and their cost, None where nothing worked; of equal ones those whose text comes first."""
        worked = [(o.cost, key) for key, o in self.outcomes.items() if o.cost is not None]
        if not worked:
            return None
        cost, key = min(worked)
        return json.loads(key), cost


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line holds, None where it is damaged."""
    try:
        entry = json.loads(line.decode("utf-8"))
        if set(entry) == {"finished"}:
            return entry if type(entry["finished"]) is int else None
        cost, failure, key = entry["cost"], entry["failure"], entry["knobs"]
        knobs = json.loads(key)
        right = _key(knobs) == key and all(type(value) is int for value in knobs.values())
        right &= cost is None or (type(cost) in (int, float) and math.isfinite(cost))
        return entry if right and isinstance(failure, str) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _another_search(path: Path, found: bytes, wanted: str) -> ArchiveError:
    """Names what differs; the whole line where it is no description of a search."""
    try:
        theirs, ours = json.loads(found)["search"], json.loads(wanted)["search"]
        keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    except (ValueError, KeyError, TypeError, AttributeError):
        line = found.decode("utf-8", "replace")[:200]
        return ArchiveError("tune", str(path), line, "a journal of this search", _HINT)
    found_there, wanted_here = ({key: side.get(key) for key in keys} for side in (theirs, ours))
    return ArchiveError("tune", f"{path}, another search", found_there, wanted_here, _HINT)


def _not_written(path: Path, error: OSError) -> ArchiveError:
    hint = "make room, or choose another folder; what was measured is kept"
    return ArchiveError("tune", str(path), error, "a file that can be written", hint)


def _key(knobs: Mapping[str, int]) -> str:
    return json.dumps(dict(knobs), sort_keys=True)
