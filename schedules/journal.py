"""What was measured, kept on disk line by line: a search that was killed answers from it and goes on where it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tvm_tinytrain.errors import ArchiveError


@dataclass(frozen=True)
class Outcome:
    """What measuring a candidate gave: its cost, or why it failed."""

    cost: float | None
    failure: str = ""


class Journal:
    """Outcomes by knobs, in a file of one JSON object a line; a last line that was cut off is dropped.

    ``head`` describes the search; a file with another one is an error, because its outcomes mean something else. ``finished`` is the
    most trials with which the search came to its end.
    """

    def __init__(self, path: Path, head: Mapping[str, object]) -> None:
        self.path = path
        self.outcomes: dict[str, Outcome] = {}
        self.finished = 0
        text = json.dumps({"search": dict(head)}, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if whole and whole[0].rstrip("\n") != text:
            hint = "use another folder, or remove this one"
            raise ArchiveError("tune", str(path), whole[0].strip()[:200], text, hint)
        for line in whole[1:]:
            entry = json.loads(line)
            if "finished" in entry:
                self.finished = max(self.finished, entry["finished"])
                continue
            self.outcomes[entry["knobs"]] = Outcome(entry["cost"], entry["failure"])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(whole) if whole else text + "\n", encoding="utf-8")
        partial.replace(path)

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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def best(self) -> tuple[dict[str, int], float] | None:
        """The cheapest knobs and their cost, None where nothing worked; of equal ones those whose text comes first."""
        worked = [(o.cost, key) for key, o in self.outcomes.items() if o.cost is not None]
        if not worked:
            return None
        cost, key = min(worked)
        return json.loads(key), cost


def _key(knobs: Mapping[str, int]) -> str:
    return json.dumps(dict(knobs), sort_keys=True)
