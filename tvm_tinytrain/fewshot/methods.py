"""The methods of the paper's tables, as libraries of ours: built once, started anew for every task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tvm_tinytrain import own_tensors
from tvm_tinytrain.adaptation import AdaptableLibrary
from tvm_tinytrain.build import build
from tvm_tinytrain.config import Adam, AdapterDrop, Budget, FullTrain, LastLayer, Prototypical, SparseUpdate
from tvm_tinytrain.errors import PlanError
from tvm_tinytrain.memory import load_plan
from tvm_tinytrain.own_tensors import OPTIONS, OptionWord
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import TaskAdaptive, find_scheme

CRITERIA = tuple(name for name in own_tensors.CRITERIA if name != "l2")  # it needs no sample
"""Criteria of one task-adaptive library, chosen when a task begins."""
ADAPTERS = {"tinytl": 0.0, "adapterdrop25": 0.25, "adapterdrop": 0.5, "adapterdrop75": 0.75}
"""Methods that train branches beside the blocks, and the share of them that is left out;
"adapterdrop" is the paper's AdapterDrop-50."""
METHODS = ("none", "lastlayer", "sparseupdate", *ADAPTERS, *CRITERIA, "fulltrain")
ADAPTIVE = TaskAdaptive(channel_ratio=Fraction(1, 2), layer_kind="auto")
"""What the task-adaptive methods are built with. 1/2 is the paper's largest ratio: with 1/4 of the channels of all layers
half of 1 MB lies idle on MCUNet. Expansions alone are as accurate, or more so, in half of the memory (docs/fewshot.md)."""
_WORD = (1 << 32) - 1


@dataclass(frozen=True)
class LibraryFiles:
    """What of a built library travels to a worker process."""

    name: str
    files: dict[str, bytes] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Method:
    """One row of the table: a library, and what is written into its tensor `options` before a task.

    trains: False for "none". criterion: of a task-adaptive library.
    """

    name: str
    library: LibraryFiles
    trains: bool = True
    criterion: str | None = None

    def write_options(self, library: AdaptableLibrary, seed: int) -> None:
        """Have a task-adaptive library choose by the method's criterion; seed: of the draws of "random"."""
        if self.criterion is None:
            return
        words = library.read(OPTIONS).view(np.uint32)
        words[OptionWord.CRITERION] = own_tensors.CRITERIA.index(self.criterion)
        words[[OptionWord.SEED_LOW, OptionWord.SEED_HIGH]] = seed & _WORD, seed >> 32 & _WORD
        library.write(OPTIONS, words.view(np.int32))

    def cost(self, plan: UpdatePlan | None) -> dict[str, int]:
        """Exact costs: memory_bytes of the arena that training needs, backward_macs per sample, trained_weights.

        plan: what a task-adaptive library installed; a fixed library's costs stand in its metadata.
        """
        meta = self.library.metadata
        if not self.trains or (self.criterion is not None and plan is None):
            return {"memory_bytes": prediction_bytes(meta), "backward_macs": 0, "trained_weights": 0}
        if plan is None or "adaptive" not in meta:
            return {
                "memory_bytes": int(meta["memory"]["arena_bytes"]),
                "backward_macs": int(meta["macs"]["accumulate"]) - int(meta["macs"]["predict"]),
                "trained_weights": int(meta["trained_weights"]),
            }
        return adaptive_cost(meta["adaptive"], plan)


def prediction_bytes(metadata: Mapping[str, Any]) -> int:
    """Bytes that prediction alone needs, without what training keeps beside it, each as the plan rounds it."""
    planned = metadata["memory"]["entries"]["predict"]
    problem, plan = load_plan(planned)
    kept = sum(b.size for b in problem.buffers if b.kind in ("gradient", "optimizer state", "weight"))
    return plan.peak - kept


def adaptive_cost(adaptive: Mapping[str, Any], plan: UpdatePlan) -> dict[str, int]:
    """Costs of a plan in a task-adaptive library, from the tables that the device selects with.

    memory_bytes is what the whole adaptation needs: a plan of few channels may need less than the Fisher pass before it.
    """
    candidates = adaptive["candidates"]
    counts = [len(plan[c["layer"]].outputs) if c["layer"] in plan else 0 for c in candidates]
    selected = sum(1 << i for i, count in enumerate(counts) if count)
    depth = next((i for i, count in enumerate(counts) if count), len(counts))
    pairs = list(zip(candidates, counts, strict=True))
    return {
        "memory_bytes": max(
            int(adaptive["activation_bytes"][-1]),
            int(adaptive["activation_bytes"][depth]) + sum(c["channel_bytes"] * k for c, k in pairs),
        ),
        "backward_macs": sum(link["macs"] for link in adaptive["links"] if link["needed"] & selected)
        + sum(c["channel_macs"] * k for c, k in pairs),
        "trained_weights": sum(c["weights"] // c["channels"] * k for c, k in pairs),
    }


def build_methods(
    network: Any,
    example_inputs: Sequence[Any],
    names: Iterable[str],
    *,
    scheme: str | None = None,
    budget: Budget | None = None,
    task_adaptive: TaskAdaptive | None = None,
    loss: Prototypical | None = None,
    target: object = "host",
) -> tuple[Method, ...]:
    """Build the libraries of the named methods, each once; all criteria share one task-adaptive library.

    network, example_inputs: as `build` takes them; the output is the embedding. scheme: of "sparseupdate", see
    `selection.SCHEMES`. budget, task_adaptive: of the task-adaptive methods; the paper's are about 1 MB and 15 %
    of FullTrain's backward multiply-accumulates, and `ADAPTIVE`. Raises PlanError for an unknown method, or
    "sparseupdate" without a scheme.
    """
    wanted = tuple(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in METHODS]
    if unknown or not wanted:
        raise PlanError("methods", "method", unknown or "none", ", ".join(METHODS), "choose among these")
    if "sparseupdate" in wanted and scheme is None:
        hint = "name a scheme of selection.SCHEMES, or leave sparseupdate out"
        raise PlanError("methods", "sparseupdate", "no scheme", "a static scheme for the network", hint)
    if scheme is not None:
        find_scheme(scheme)  # before the other methods are built
    adaptive = task_adaptive or ADAPTIVE
    updates: dict[str, Any] = {
        "lastlayer": LastLayer(),
        "fulltrain": FullTrain(),
        "sparseupdate": SparseUpdate(scheme) if scheme else None,
        "adaptive": replace(adaptive, criterion="tinytrain"),
        **{name: AdapterDrop(drop) for name, drop in ADAPTERS.items()},
    }
    kinds = {name: "adaptive" if name in CRITERIA else name for name in wanted}
    # Others lay memory out for what they train, so that prediction alone would seem to need more.
    if "none" in kinds:
        kinds["none"] = "lastlayer"
    built: dict[str, LibraryFiles] = {}
    for kind in dict.fromkeys(kinds.values()):
        module = build(
            network,
            target,
            example_inputs=example_inputs,
            loss=loss or Prototypical(),
            optimizer=Adam(),
            update=updates[kind],
            budget=(budget or Budget("1MB", 0.15)) if kind == "adaptive" else None,
            accumulate=True,
            name=kind,
        )
        built[kind] = LibraryFiles(module.name, module.files, module.metadata)
    return tuple(
        Method(name, built[kinds[name]], name != "none", name if name in CRITERIA else None)
        for name in wanted
    )
