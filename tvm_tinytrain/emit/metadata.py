"""What is known about a built library, as JSON values, and the same as text for a terminal."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from typing import Any

from tvm_tinytrain._version import __version__
from tvm_tinytrain.config import TrainConfig
from tvm_tinytrain.emit.c_source import Library, in_flash
from tvm_tinytrain.emit.model_library import FORMAT
from tvm_tinytrain.emit.trained import (
    candidates,
    least_arena,
    row_bytes,
    trainable,
    trained_channels,
    trained_plan,
    trained_weights,
)
from tvm_tinytrain.memory import load_plan, store_plan, text_plan
from tvm_tinytrain.passes.state import Layer
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.targets.target import Target

_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy")


def describe_options(config: TrainConfig) -> dict[str, Any]:
    """The options as JSON values, each choice with its class name."""
    described: dict[str, Any] = {"accumulate": config.accumulate, "name": config.name}
    described["also_train"] = list(config.also_train)
    for key in ("loss", "optimizer", "update", "budget", "memory"):
        value = getattr(config, key)
        fields = json.loads(value.to_json()) if isinstance(value, UpdatePlan) else _plain(asdict(value))
        described[key] = {"kind": type(value).__name__, "fields": fields}
    return described


def _plain(value: Any) -> Any:
    """Values that JSON knows: a fraction as text, whatever it lies in."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value if isinstance(value, (int, float, str, list, tuple, type(None))) else str(value)


def make_metadata(
    library: Library,
    target: Target,
    plan: UpdatePlan,
    layers: tuple[Layer, ...],
    options: dict[str, Any],
    macs: dict[str, int],
    recomputed: dict[str, dict[str, int]],
    untrained: list[str],
    renamed: dict[str, str],
) -> dict[str, Any]:
    """The content of ``metadata.json``. ``recomputed``: what is computed a second time, as the attribute ``tt.recomputed`` says it;
    ``untrained``: parameters with a gradient that belong to no layer, and are not trained; ``renamed``: {name in the network: name
    in the library} of inputs and parameters that have another one here."""
    arena, tensors = library.arena, library.tensors()
    by_kind: dict[str, int] = {}
    for t in tensors:
        by_kind[t.role] = by_kind.get(t.role, 0) + t.storage.bytes
    params = [s.name for s in library.program.storages if s.role == "param"]
    entries, others = trainable(plan, layers, params, options["also_train"])
    block = {} if library.adaptive is None else {"adaptive": library.adaptive.metadata(library.program)}
    return {
        **block,
        "format": FORMAT,
        "name": library.name,
        "digest": library.digest,
        "target": target.to_json(),
        "kernels": _kernels(library, target),
        "options": options,
        "versions": {"tvm_tinytrain": __version__, **{p: importlib.metadata.version(p) for p in _PACKAGES}},
        "plan": json.loads(plan.to_json()),
        "plan_digest": plan.digest,
        "trained_weights": trained_weights(entries, layers),
        "training": {
            "trainable": entries,
            "others": others,
            "untrained": untrained,
            **_training(library, plan, by_kind),
        },
        "layers": [asdict(layer) for layer in layers],
        "macs": macs,
        "entries": ["init", *library.entry_names()],
        "tensors": [
            {"name": t.name, "role": t.role, "dtype": t.storage.dtype, "shape": list(t.storage.shape), "bytes": t.storage.bytes,
             "offset": t.offset}
            for t in tensors
        ],
        "renamed": renamed,
        "memory": {
            "arena_bytes": arena.arena_bytes,
            "lower_bound_bytes": arena.lower_bound,
            **{f"flash_{key}": count for key, count in _flash(library).items()},
            "bytes_by_role": by_kind,
            "recomputed": recomputed,
            "entries": {
                e.name: {"calls": len(e.calls), **store_plan(arena.problems[e.name], arena.plans[e.name])}
                for e in library.program.entries
            },
        },
    }  # fmt: skip


def _training(library: Library, plan: UpdatePlan, by_kind: dict[str, int]) -> dict[str, Any]:
    """What a firmware team asks of a training library, beside which rows of which tensors change: what that takes by pool."""
    pool = library.adaptive.cache_bytes if library.adaptive is not None else 0
    rows = _row_bytes(library)
    return {
        "selection": "at run time" if library.adaptive is not None else "fixed",
        "plan_digest": plan.digest,
        "optimizer_bytes": by_kind.get("state", 0) + rows.get("state", 0),
        "gradient_bytes": by_kind.get("grad", 0) + rows.get("grad", 0),
        "pools": {
            "flash": _flash(library),
            "sram": {"arena_bytes": library.arena.arena_bytes},
            **({"cache": {"bytes": pool, "section": "TT_CACHE_SECTION"}} if pool else {}),
        },
    }  # fmt: skip


def _row_bytes(library: Library) -> dict[str, int]:
    """Bytes by role of a task-adaptive library's rows, with all channels of all candidates trained; they have no place of their own."""
    found: dict[str, int] = {}
    for storage in library.program.storages:
        if library.adaptive is not None and library.adaptive.row_index(storage.name) is not None:
            found[storage.role] = found.get(storage.role, 0) + storage.bytes
    return found


def _flash(library: Library) -> dict[str, int]:
    """Bytes of the parameters' file: what stays in flash, and what ``init`` copies from there into the arena."""
    found = {"constant_bytes": 0, "initial_bytes": 0}
    for name, value in library.values.items():
        storage = in_flash(library, name)
        if storage is not None:
            found["constant_bytes" if storage.role in ("const", "list") else "initial_bytes"] += value.nbytes
    return found


def _kernels(library: Library, target: Target) -> dict[str, Any]:
    """In what form the kernels stand in the archive: C, or an object file for one machine."""
    if library.kernel_object is None:
        return {"form": "c", "file": f"{library.prefix}_kernels.c"}
    return {
        "form": "object", "file": f"{library.prefix}_kernels.o", "triple": target.mtriple, "mcpu": target.core.name,
        "sha256": hashlib.sha256(library.kernel_object).hexdigest(),
    }  # fmt: skip


def entries_in_order(metadata: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, memory) of the entries with a plan, in the library's order; an archive's JSON is sorted by name."""
    stored = metadata["memory"]["entries"]
    return [(entry, stored[entry]) for entry in metadata["entries"] if entry in stored]


def cache_pool_bytes(metadata: dict[str, Any]) -> int:
    """Bytes of the cache that lie outside of the arena (`TaskAdaptive(cache_bytes=...)`), or 0."""
    return int(metadata["training"]["pools"].get("cache", {}).get("bytes", 0))


def report_text(metadata: dict[str, Any]) -> str:
    """Layers, what is trained, multiply-accumulates, and bytes by pool, from a library's metadata."""
    memory = metadata["memory"]
    chosen, others = trained_channels(metadata), metadata["training"]["others"]
    number, chooses = len(trained_plan(metadata)), bool(candidates(metadata))
    pool = cache_pool_bytes(metadata)
    untrained = metadata["training"]["untrained"]
    rest = f" and {len(untrained) - 8} more" if len(untrained) > 8 else ""
    lines = [
        f"{metadata['name']} for {metadata['options']['target']}",
        f"  {'the device chooses among' if chooses else 'trained'}: {number} of {len(metadata['layers'])} layers, "
        f"{metadata['trained_weights']} weights",
        *([f"  trained beside the layers: {', '.join(others)}"] if others else []),
        *([f"  of no layer, not trained: {', '.join(untrained[:8])}{rest}"] if untrained else []),
        f"  SRAM arena {memory['arena_bytes']} B (lower bound {memory['lower_bound_bytes']} B), "
        f"flash constants {memory['flash_constant_bytes']} B, initial values {memory['flash_initial_bytes']} B",
        *([f"  cache pool {pool} B, in TT_CACHE_SECTION"] if pool else []),
        *(_rows_text(metadata) if chooses else []),
    ]
    if renamed := metadata["renamed"]:
        names = ", ".join(f"{old} is {new}" for old, new in sorted(renamed.items()))
        lines.append(f"  renamed, since the library has tensors or functions of these names: {names}")
    for entry, info in entries_in_order(metadata):
        macs = metadata["macs"][entry]
        lines.append(
            f"  {entry}: peak {info['peak_bytes']} B, {'at most ' * (chooses and macs > 0)}{macs} multiply-accumulates, "
            f"{info['calls']} kernel calls"
        )
        again = memory["recomputed"].get(entry)
        if again is not None:
            lines.append(
                f"    {again['segments']} segments are computed again on the way back: {again['macs']} of these multiply-accumulates"
            )
    lines.append(f"  {'layer':>5}  {'weight':<32} {'shape':<14} {'MACs':>10}  trained channels")
    for layer in metadata["layers"]:
        shape = "×".join(str(d) for d in layer["weight_shape"])
        lines.append(
            f"  {layer['id']:>5}  {layer['weight'][-32:]:<32} {shape:<14} {layer['macs']:>10}  {chosen[layer['id']]}"
        )
    fullest = max(memory["entries"], key=lambda e: memory["entries"][e]["peak_bytes"])
    lines.append(f"  {fullest}, step by step:")
    picture = text_plan(*load_plan(memory["entries"][fullest]))
    return "\n".join([*lines, *(f"  {line}" for line in picture.splitlines())])


def _rows_text(metadata: dict[str, Any]) -> list[str]:
    """What the rows of a task-adaptive library take, which stands in no entry's peak."""
    rows, size, least = row_bytes(metadata), metadata["memory"]["arena_bytes"], least_arena(metadata)
    parts = ", ".join(f"{what} {count}" for what, count in rows.items())
    lines = [
        f"  rows of trained channels, behind each peak below: {sum(rows.values())} B for all of them ({parts})"
    ]
    if least > size:
        lines.append(f"  nothing can be trained in this arena: one channel takes {least} B")
    return lines
