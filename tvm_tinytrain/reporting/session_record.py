"""What a page shows of an adaptation, as a file: losses, Fisher potentials, the plan that was trained."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from tvm_tinytrain.adaptation import AdaptResult
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import FisherMap

_FORMAT = 1


def finite_or_none(value: float) -> float | None:
    """A number as JSON can hold it: one that is not finite, as of a training that diverged, is None."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SessionRecord:
    """losses, accuracies: of the pseudo-queries by iteration. fisher, plan: of a task-adaptive library, else None."""

    losses: tuple[float, ...]
    accuracies: tuple[float, ...] = ()
    fisher: FisherMap | None = None
    plan: UpdatePlan | None = None

    @classmethod
    def of(cls, result: AdaptResult) -> SessionRecord:
        """The record of what `adapt` returned."""
        return cls(result.losses, result.accuracies, result.fisher, result.plan)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, a loss that is not finite as null; ArchiveError where that is impossible."""
        fisher = None if self.fisher is None else json.loads(self.fisher.to_json())
        plan = None if self.plan is None else json.loads(self.plan.to_json())
        losses = [finite_or_none(v) for v in self.losses]
        fields = {"losses": losses, "accuracies": self.accuracies, "fisher": fisher, "plan": plan}
        text = json.dumps({"format": _FORMAT, **fields}) + "\n"
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            hint = "choose another folder"
            raise ArchiveError("adapt", str(path), error, "a writable path", hint) from error

    @classmethod
    def load(cls, path: str | Path) -> SessionRecord:
        """Read what `save` wrote; ArchiveError for anything else."""
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
            if raw["format"] != _FORMAT:
                raise ValueError(f"format {raw['format']}")
            fisher, plan = raw["fisher"], raw["plan"]
            return cls(
                tuple(math.nan if v is None else float(v) for v in raw["losses"]),
                tuple(float(v) for v in raw["accuracies"]),
                None if fisher is None else FisherMap.from_json(json.dumps(fisher)),
                None if plan is None else UpdatePlan.from_json(json.dumps(plan)),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "pass a file that SessionRecord.save wrote"
            raise ArchiveError("report", str(path), error, "a session's record", hint) from error
