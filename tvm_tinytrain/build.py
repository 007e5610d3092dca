"""build(): a network goes in, a training library comes out; nothing is written to disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm_tinytrain._version import __version__
from tvm_tinytrain.config import SGD, Budget, CrossEntropy, FullTrain, Loss, Optimizer, TrainConfig, Update
from tvm_tinytrain.emit import Library, emit_c, print_kernels
from tvm_tinytrain.emit.metadata import describe_options, make_metadata, report_text
from tvm_tinytrain.emit.model_library import pack, unpack
from tvm_tinytrain.errors import ArchiveError
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.plan_memory import ArenaPlan, plan_arena
from tvm_tinytrain.passes.program import Program, analyse_program
from tvm_tinytrain.passes.state import Layer, get_layers, get_values
from tvm_tinytrain.pipeline import Instruments, compile_module
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.targets.target import Target, parse_target


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
    pass_seconds: dict[str, float] = field(repr=False, default_factory=dict, compare=False)

    def write(self, folder: str | Path) -> Path:
        """Writes the files into ``folder`` (made if absent) and returns it; ArchiveError where that is impossible."""
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            partial = {name: path / f"{name}.partial" for name in self.files}
            for name, content in self.files.items():
                partial[name].write_bytes(content)
            for name in self.files:
                partial[name].replace(path / name)
        except OSError as error:
            for name in self.files:
                with contextlib.suppress(OSError):
                    (path / f"{name}.partial").unlink()
            raise ArchiveError(
                "write", str(path), error, "a writable folder", "choose another folder"
            ) from error
        return path

    def export(self, path: str | Path) -> Path:
        """Writes the model library archive (a tar) whole or not at all; returns its path. Inverse: `load`."""
        target = Path(path)
        partial = target.with_name(target.name + ".partial")
        try:
            partial.write_bytes(pack(self.files))
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ArchiveError(
                "export", str(target), error, "a writable path", "choose another folder"
            ) from error
        return target

    def report(self) -> str:
        """Layers, what is trained, multiply-accumulates, and bytes by pool, as text for a terminal."""
        return report_text(self.metadata)


@dataclass(frozen=True)
class LoadedModule:
    """A library read back from its archive: what boards and sessions need."""

    name: str
    target: Target
    files: dict[str, bytes]
    metadata: dict[str, Any]
    plan: UpdatePlan

    def report(self) -> str:
        """As `TrainModule.report`."""
        return report_text(self.metadata)


def load(path: str | Path) -> LoadedModule:
    """Reads an archive that `TrainModule.export` wrote. Raises ArchiveError where it is damaged or of another format."""
    files, metadata = unpack(path)
    plan = UpdatePlan.from_json(json.dumps(metadata["plan"]))
    return LoadedModule(metadata["name"], parse_target(metadata["target"]), files, metadata, plan)


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
    options = {"target": str(resolved_target), **describe_options(config)}
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
        minmax="minmax" in resolved_target.core.features,
    )
    macs = {
        e.name: sum(kernel_spec(specs[c.kernel]).get("macs", 0) for c in e.calls if c.kernel in specs)
        for e in program.entries
    }
    metadata = make_metadata(library, resolved_target, plan, layers, options, macs)
    files = emit_c(library)
    files["metadata.json"] = (json.dumps(metadata, indent=1, sort_keys=True) + "\n").encode()
    return TrainModule(
        name, resolved_target, dict(sorted(files.items())), metadata, plan, layers, program, arena, times
    )
