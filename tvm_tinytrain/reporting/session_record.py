"""What a page shows of an adaptation, as a file: losses, Fisher potentials, the plan that was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_tinytrain.adaptation import AdaptResult, LearnResult
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import FisherMap
from tvm_tinytrain.whole_file import whole_file

_FORMAT = 1


def finite_or_none(value: float) -> float | None:
    """A number as JSON can hold it: one that is not finite, as of a training that diverged, is None."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class SessionRecord:
    """losses, accuracies: of the pseudo-queries by iteration; accuracies of all or, as from `learn`, of none.

    fisher, plan: of a task-adaptive library, else None.
    library: the digest of the library that was adapted; None where it is not known, as in older files.
    """

    losses: tuple[float, ...]
    accuracies: tuple[float, ...] = ()
    fisher: FisherMap | None = None
    plan: UpdatePlan | None = None
    library: str | None = None

    @classmethod
    def of(cls, result: AdaptResult | LearnResult, module: Any = None) -> SessionRecord:
        """The record of what `adapt` or `learn` returned. module: the library, so that no other's page takes the record."""
        accuracies = result.accuracies if isinstance(result, AdaptResult) else ()
        library = None if module is None else str(module.metadata["digest"])
        return cls(result.losses, accuracies, result.fisher, result.plan, library)

    def check_library(self, metadata: Mapping[str, Any]) -> None:
        """ArchiveError where the session was another library's: another digest, or layers and channels that this one has not."""
        hint = "name the archive that was adapted"
        if self.library is not None and self.library != metadata["digest"]:
            found, allowed = f"of library {self.library}", f"of library {metadata['digest']}"
            raise ArchiveError("report", "session", found, allowed, hint)
        channels = {c["layer"]: c["channels"] for c in metadata.get("adaptive", {}).get("candidates", ())}
        planned = {} if self.plan is None else {u.layer: u.outputs[-1] + 1 for u in self.plan.layers}
        measured = {} if self.fisher is None else {i: len(v) for i, v in self.fisher.layers.items()}
        wrong = [f"{n} channels of layer {i}" for i, n in planned.items() if n > channels.get(i, 0)]
        wrong += [f"{n} channels of layer {i}" for i, n in measured.items() if n != channels.get(i, 0)]
        if wrong:
            allowed = f"channels by layer {channels}" if channels else "none: the library trains a fixed plan"
            raise ArchiveError("report", "session", ", ".join(dict.fromkeys(wrong)), allowed, hint)

    def save(self, path: str | Path) -> None:
        """Write a JSON file whole or not at all, a loss that is not finite as null; ArchiveError where that is impossible."""
        fisher = None if self.fisher is None else json.loads(self.fisher.to_json())
        plan = None if self.plan is None else json.loads(self.plan.to_json())
        losses = [finite_or_none(v) for v in self.losses]
        fields = {"losses": losses, "accuracies": self.accuracies, "fisher": fisher, "plan": plan}
        text = json.dumps({"format": _FORMAT, **fields, "library": self.library}) + "\n"
        try:
            with whole_file(Path(path)) as part:
                part.write_text(text, encoding="utf-8")
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
            losses, accuracies = len(raw["losses"]), len(raw["accuracies"])
            if accuracies not in (0, losses):
                raise ValueError(f"{losses} losses and {accuracies} accuracies")
            fisher, plan, library = raw["fisher"], raw["plan"], raw.get("library")
            return cls(
                tuple(math.nan if v is None else float(v) for v in raw["losses"]),
                tuple(float(v) for v in raw["accuracies"]),
                None if fisher is None else FisherMap.from_json(json.dumps(fisher)),
                None if plan is None else UpdatePlan.from_json(json.dumps(plan)),
                None if library is None else str(library),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            hint = "pass a file that SessionRecord.save wrote"
            raise ArchiveError("report", str(path), error, "a session's record", hint) from error
