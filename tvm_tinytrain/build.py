"""build(): a network goes in, a training library comes out; nothing is written to disk."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tvm_tinytrain._version import __version__
from tvm_tinytrain.config import SGD, Budget, CrossEntropy, FullTrain, Loss, Optimizer, TrainConfig, Update
from tvm_tinytrain.emit import Library, emit_c, print_kernels
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.plan_memory import ArenaPlan, plan_arena
from tvm_tinytrain.passes.program import Program, analyse_program
from tvm_tinytrain.passes.state import Layer, get_layers, get_values
from tvm_tinytrain.pipeline import Instruments, compile_module
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.targets.target import Target, parse_target

_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "numpy")


@dataclass(frozen=True)
class TrainModule:
    """A built library: its files in memory, and what is known about it.

    ``files`` are the emitted sources with ``metadata.json``; ``program`` and ``arena`` are the calls and the memory plan that they
    were written from; ``plan`` says which layers and channels it trains.
    """

    name: str
    target: Target
    files: dict[str, bytes]
    metadata: dict[str, Any]
    plan: UpdatePlan
    layers: tuple[Layer, ...]
    program: Program = field(repr=False)
    arena: ArenaPlan = field(repr=False)

    def write(self, folder: str | Path) -> Path:
        """Writes the files into ``folder`` (made if absent) and returns it."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (path / name).write_bytes(content)
        return path

    def report(self) -> str:
        """Layers, what is trained, multiply-accumulates, and bytes by pool, as text for a terminal."""
        memory = self.metadata["memory"]
        lines = [
            f"{self.name} for {self.target}",
            f"  trained: {len(self.plan.layers)} of {len(self.layers)} layers, {self.metadata['trained_weights']} weights",
            f"  SRAM arena {memory['arena_bytes']} B (lower bound {memory['lower_bound_bytes']} B), "
            f"flash constants {memory['flash_constant_bytes']} B",
        ]
        for entry, info in memory["entries"].items():
            macs = self.metadata["macs"][entry]
            lines.append(
                f"  {entry}: peak {info['peak_bytes']} B, {macs} multiply-accumulates, {info['calls']} kernel calls"
            )
        lines.append(f"  {'layer':>5}  {'weight':<28} {'shape':<18} {'MACs':>10}  trained channels")
        for layer in self.layers:
            chosen = len(self.plan[layer.id].outputs) if layer.id in self.plan else 0
            shape = "×".join(str(d) for d in layer.weight_shape)
            lines.append(
                f"  {layer.id:>5}  {layer.weight[:28]:<28} {shape:<18} {layer.macs:>10}  {chosen}/{layer.channels}"
            )
        return "\n".join(lines)


def build(
    mod: Any,
    target: object = "c -mcpu=cortex-m7",
    *,
    example_inputs: Sequence[Any] | None = None,
    params: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    update: Update | None = None,
    budget: Budget | None = None,
    accumulate: bool = False,
    name: str = "model",
    instruments: Instruments | None = None,
) -> TrainModule:
    """Compiles a network into a library that trains it on a device.

    Parameters
    ----------
    mod
        A Relax IRModule, a ``torch.export.ExportedProgram``, an ``nn.Module`` (with ``example_inputs``), an ``onnx.ModelProto``, or a
        path to .pt2, .onnx or Relay text. One sample per batch, float32, fixed shapes.
    target
        ``"c -mcpu=cortex-m7"``, ``"host"``, a dict, or a ``tvm.target.Target``.
    loss, optimizer, update, budget
        Default: ``CrossEntropy()``, ``SGD()``, ``FullTrain()``, no limits.
    accumulate
        Two entries instead of ``step``: ``accumulate`` adds one sample's gradients, ``apply`` updates the weights.
    name
        C identifier that all public names carry: ``tt_<name>_step``.

    Returns
    -------
    TrainModule
        The emitted files in memory. Two builds from the same input give the same bytes.

    Raises
    ------
    TinyTrainError
        A subclass that names the stage, what was found, what is allowed and what to do.
    """
    resolved_target = parse_target(target)
    config = TrainConfig(
        loss or CrossEntropy(),
        optimizer or SGD(),
        update or FullTrain(),
        budget or Budget(),
        accumulate,
        name,
    )
    imported = import_model(mod, example_inputs=example_inputs, params=params)
    lowered, plan, times = compile_module(
        imported, config, resolved_target.to_tvm(), instruments or Instruments()
    )
    kernels = print_kernels(name, lowered)
    program = analyse_program(lowered)
    workspaces = {k: c.workspace_bytes for k, c in kernels.items()}
    arena = plan_arena(program, workspaces, capacity=config.budget.memory_bytes)
    layers, values = get_layers(lowered), get_values(lowered)
    specs = {gv.name_hint: f for gv, f in lowered.functions.items() if kernel_kind(f) is not None}
    limit = next(
        (kernel_spec(f)["classes"] for f in specs.values() if kernel_kind(f) == "softmax_cross_entropy"), None
    )
    options = {"target": str(resolved_target), **_describe(config)}
    digest = hashlib.sha256(json.dumps([options, plan.to_json()], sort_keys=True).encode()).hexdigest()[:16]
    used = {s.name for s in program.storages}
    library = Library(
        name,
        __version__,
        digest,
        program,
        arena,
        kernels,
        {k: v for k, v in values.items() if k in used},
        limit,
    )
    macs = {
        e.name: sum(kernel_spec(specs[c.kernel]).get("macs", 0) for c in e.calls if c.kernel in specs)
        for e in program.entries
    }
    metadata = _metadata(library, resolved_target, plan, layers, options, macs)
    files = emit_c(library)
    files["metadata.json"] = (json.dumps(metadata, indent=1, sort_keys=True) + "\n").encode()
    return TrainModule(
        name, resolved_target, dict(sorted(files.items())), metadata, plan, layers, program, arena
    )


def _describe(config: TrainConfig) -> dict[str, Any]:
    """The options as JSON values, each choice with its class name."""
    described: dict[str, Any] = {"accumulate": config.accumulate, "name": config.name}
    for key in ("loss", "optimizer", "update", "budget"):
        value = getattr(config, key)
        fields = json.loads(value.to_json()) if isinstance(value, UpdatePlan) else asdict(value)
        described[key] = {"kind": type(value).__name__, "fields": fields}
    return described


def _metadata(
    library: Library,
    target: Target,
    plan: UpdatePlan,
    layers: tuple[Layer, ...],
    options: dict[str, Any],
    macs: dict[str, int],
) -> dict[str, Any]:
    arena, tensors = library.arena, library.tensors()
    by_kind: dict[str, int] = {}
    for t in tensors:
        by_kind[t.role] = by_kind.get(t.role, 0) + t.storage.bytes
    weights = {layer.id: layer for layer in layers}
    trained = sum(
        len(u.outputs) * (len(u.inputs) if u.inputs is not None else weights[u.layer].inputs)
        * (weights[u.layer].weights // (weights[u.layer].channels * weights[u.layer].inputs))
        for u in plan.layers
        if u.weight
    )  # fmt: skip
    return {
        "format": 1,
        "name": library.name,
        "digest": library.digest,
        "target": target.to_json(),
        "options": options,
        "versions": {"tvm_tinytrain": __version__, **{p: importlib.metadata.version(p) for p in _PACKAGES}},
        "plan": json.loads(plan.to_json()),
        "plan_digest": plan.digest,
        "trained_weights": trained,
        "layers": [asdict(layer) for layer in layers],
        "macs": macs,
        "entries": ["init", *(e.name for e in library.program.entries)],
        "tensors": [
            {"name": t.name, "role": t.role, "dtype": t.storage.dtype, "shape": list(t.storage.shape), "bytes": t.storage.bytes,
             "offset": t.offset}
            for t in tensors
        ],
        "memory": {
            "arena_bytes": arena.arena_bytes,
            "lower_bound_bytes": arena.lower_bound,
            "flash_constant_bytes": by_kind.get("const", 0) + by_kind.get("list", 0),
            "bytes_by_role": by_kind,
            "entries": {
                e.name: {"peak_bytes": arena.plans[e.name].peak, "lower_bound_bytes": arena.plans[e.name].lower_bound, "calls": len(e.calls)}
                for e in library.program.entries
            },
        },
    }  # fmt: skip
