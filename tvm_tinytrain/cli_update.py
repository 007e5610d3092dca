"""``--update``: who is trained, as a word, a word with a value, or a file. For ``compile`` and ``tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

UPDATES = (
    "full, last-layer, bias-only, tinytl, adapterdrop:0.5, sparse:SCHEME, "
    "adaptive, adaptive:all, adaptive:expansions, adaptive:auto"
)


def parse_update(stage: str, text: str, also: str = "") -> Any:
    """Return the update that ``text`` names: one of `UPDATES`, or a JSON file with an update plan.

    stage: of errors. also: what else the caller takes, for the text of an error. Raises PlanError for a value out of range, a scheme
    or kind of layer that is not known, and a file that cannot be read or is no plan.
    """
    from tvm_tinytrain.config import AdapterDrop, BiasOnly, FullTrain, LastLayer, SparseUpdate, TinyTL
    from tvm_tinytrain.errors import PlanError
    from tvm_tinytrain.plan import UpdatePlan
    from tvm_tinytrain.selection import TaskAdaptive

    plain: dict[str, Any] = {
        "full": FullTrain, "last-layer": LastLayer, "bias-only": BiasOnly, "tinytl": TinyTL, "adaptive": TaskAdaptive,
    }  # fmt: skip
    if text in plain:
        return plain[text]()
    kind, _, value = text.partition(":")
    if kind == "sparse" and value:
        return SparseUpdate(value)
    if kind == "adaptive" and value:
        return TaskAdaptive(layer_kind=value)  # type: ignore[arg-type]  # it refuses what it does not know
    if kind == "adapterdrop" and value:
        try:
            return AdapterDrop(float(value))
        except ValueError as error:
            hint = "write adapterdrop:0.5"
            raise PlanError(stage, f"--update {text}", value, "a share, below 1", hint) from error
    try:
        return UpdatePlan.from_json(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        named = "/" not in text and not text.endswith(".json")  # as the words are, not as a file
        found = "no such update" if not text or (named and not Path(text).exists()) else error
        allowed = f"{UPDATES}, {also}or a JSON file"
        raise PlanError(
            stage, f"--update {text}", found, allowed, "check the spelling or the path"
        ) from error
