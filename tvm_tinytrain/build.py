"""build(): a network goes in, a training library comes out; nothing is written to disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from tvm_tinytrain._version import __version__
from tvm_tinytrain.adaptive_library import choose_candidates, make_adaptive, merge_arena
from tvm_tinytrain.config import (
    SGD,
    Budget,
    CrossEntropy,
    FullTrain,
    Loss,
    MemoryOptions,
    Optimizer,
    SparseUpdate,
    TrainConfig,
    Update,
)
from tvm_tinytrain.emit import Library, check_name, emit_c, emit_object, print_kernels
from tvm_tinytrain.emit.metadata import describe_options, make_metadata, report_text
from tvm_tinytrain.emit.model_library import pack, unpack
from tvm_tinytrain.errors import ArchiveError, BudgetError, PlanError, TargetError
from tvm_tinytrain.frontend import import_model
from tvm_tinytrain.passes.kernels.builder import executed_macs, kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.listed import LISTED
from tvm_tinytrain.passes.plan_memory import ArenaPlan, plan_arena
from tvm_tinytrain.passes.program import Program, analyse_program
from tvm_tinytrain.passes.state import (
    RECOMPUTED,
    UNTRAINED,
    VALUES,
    Layer,
    get_json,
    get_layers,
    get_renamed,
    get_values,
)
from tvm_tinytrain.pipeline import Instruments, compile_adaptive, compile_module
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.reporting import Report
from tvm_tinytrain.schedules import OWN_CHOICE, RULES, Rule, Tuned
from tvm_tinytrain.schedules.records import Record, load_records, records_for
from tvm_tinytrain.selection import TaskAdaptive, find_scheme
from tvm_tinytrain.targets.target import Target, parse_target
from tvm_tinytrain.update_schemes import resolve_plan
from tvm_tinytrain.whole_file import whole_file


@dataclass(frozen=True)
class TrainModule:
    """A built library: its files in memory, and what is known about it.

    ``files`` are the emitted sources with ``metadata.json``; ``program`` and ``arena`` are the calls and the memory plan that they
    were written from; ``plan`` says which layers and channels it trains; ``unscheduled`` are its kernels before any schedule.
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
    unscheduled: tuple[tirx.PrimFunc, ...] = field(repr=False, default=(), compare=False)

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
        try:
            with whole_file(target) as part:
                part.write_bytes(pack(self.files))
        except OSError as error:
            raise ArchiveError(
                "export", str(target), error, "a writable path", "choose another folder"
            ) from error
        return target

    def report(self) -> str:
        """Layers, what is trained, multiply-accumulates, and bytes by pool, as text for a terminal."""
        return report_text(self.metadata)

    def _repr_html_(self) -> str:
        """What a notebook shows: costs by layer, the memory plan of every entry, bytes by role (`reporting.Report`)."""
        return Report(self).fragment()


@dataclass(frozen=True)
class LoadedModule:
    """A library read back from its archive: what boards and sessions need."""

    name: str
    target: Target
    files: dict[str, bytes]
    metadata: dict[str, Any]
    plan: UpdatePlan

    def report(self) -> str:
        """As `TrainModule.report`; ArchiveError where the metadata was written by other hands and says less."""
        try:
            return report_text(self.metadata)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            found, hint = f"{type(error).__name__}: {error}", "export the module again"
            raise ArchiveError("report", self.name, found, "the metadata of a build", hint) from error

    def _repr_html_(self) -> str:
        """As a `TrainModule` shows itself."""
        return Report(self).fragment()


def load(path: str | Path) -> LoadedModule:
    """Reads an archive that `TrainModule.export` wrote. Raises ArchiveError where it is damaged or of another format."""
    files, metadata = unpack(path)
    try:
        plan = UpdatePlan.from_json(json.dumps(metadata["plan"]))
        return LoadedModule(metadata["name"], parse_target(metadata["target"]), files, metadata, plan)
    except (PlanError, TargetError) as error:
        allowed, hint = "a plan and a target of this version", "export the module again"
        raise ArchiveError("load", f"{path}, metadata.json", error, allowed, hint) from error


def build(
    mod: Any,
    target: object = "c -mcpu=cortex-m7",
    *,
    example_inputs: Sequence[Any] | None = None,
    params: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    update: Update | TaskAdaptive | None = None,
    budget: Budget | None = None,
    accumulate: bool | None = None,
    name: str = "model",
    memory: MemoryOptions | None = None,
    also_train: Sequence[str] = (),
    records: str | Path | Iterable[Record] | None = None,
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
        True: two entries, ``accumulate`` adds one sample's gradients, ``apply`` updates the weights. False: ``step`` alone, which
        applies each gradient where it is made, one sample per step, and keeps none: 4 bytes less per trained weight. Default: True for
        `TaskAdaptive` (whose ``step`` calls the two), False for a fixed update.
    name
        C identifier that all public names carry: ``tt_<name>_step``. The C runtime's own (loop, port, session, …) are refused, and what
        ends like files of another library (``_internal``, ``_kernels``, ``_params``). Two libraries of one firmware must differ in
        more than small and capital letters: macros are in capital ones.
    memory
        What the compiler does so that less has to be kept.
    also_train
        Names of parameters that belong to no layer (a layer norm's scale, say) and are trained as well.
    records
        Tuned schedules (see `tune`): a file, a folder or the records themselves, of which those for the target's core count; None:
        those of this package. ``()``: none at all.

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
    if isinstance(also_train, str):
        raise PlanError(
            "config", "also_train", repr(also_train), "a sequence of names", f"write ({also_train!r},)"
        )
    config = TrainConfig(
        loss or CrossEntropy(),
        optimizer or SGD(),
        FullTrain() if update is None else update,  # an empty plan is false, and an error
        budget or Budget(),
        isinstance(update, TaskAdaptive) if accumulate is None else accumulate,
        name,
        memory or MemoryOptions(),
        tuple(also_train),
    )
    check_name(name)
    if config.budget.compute is not None and not isinstance(config.update, TaskAdaptive):
        allowed, hint = (
            "None for a fixed update",
            "it has its own work; TaskAdaptive(...) chooses within a budget",
        )
        raise BudgetError("config", "compute budget", config.budget.compute, allowed, hint)
    if isinstance(config.update, SparseUpdate):
        find_scheme(config.update.scheme)
    asked: list[tirx.PrimFunc] = []
    rules = (_collect(asked), *_rules(records, resolved_target))
    imported = import_model(mod, example_inputs=example_inputs, params=params)
    network = _network_text(imported)
    watched = instruments or Instruments()
    compiled = _compile(imported, config, resolved_target, watched, rules)
    try:
        library, macs = _library(compiled, config, resolved_target, network, watched.count_macs)
    except BudgetError:
        if config.memory.recompute != "auto":
            raise  # else kernels need more beside their tensors than was foreseen: as little as possible, then
        asked.clear()
        config = replace(config, memory=replace(config.memory, recompute="lowest"))
        compiled = _compile(imported, config, resolved_target, watched, rules)
        library, macs = _library(compiled, config, resolved_target, network, watched.count_macs)
    layers = get_layers(compiled.module)
    metadata = make_metadata(
        library,
        resolved_target,
        compiled.plan,
        layers,
        _options(config, resolved_target),
        macs,
        get_json(compiled.module, RECOMPUTED, {}),
        get_json(compiled.module, UNTRAINED, []),
        dict(get_renamed(compiled.module)),
    )
    files = emit_c(library)
    files["metadata.json"] = (json.dumps(metadata, indent=1, sort_keys=True) + "\n").encode()
    return TrainModule(
        name, resolved_target, dict(sorted(files.items())), metadata, compiled.plan, layers, library.program, library.arena,
        compiled.times, tuple(asked),
    )  # fmt: skip


def _rules(records: str | Path | Iterable[Record] | None, target: Target) -> tuple[Rule, ...]:
    """The schedule rules with the given records for the target's core in front."""
    if records is None:
        return RULES
    if isinstance(records, (str, Path)):
        return (Tuned(records_for(target.core.name, load_records(records))), *OWN_CHOICE)
    given = list(records) if isinstance(records, Iterable) else [records]
    for item in given:
        if not isinstance(item, Record):
            allowed, hint = "a path, or records", "() takes none, None this package's"
            raise ArchiveError("records", "records", type(item).__name__, allowed, hint)
    return (Tuned(records_for(target.core.name, given)), *OWN_CHOICE)


def _collect(found: list[tirx.PrimFunc]) -> Rule:
    """A rule that takes no kernel, but keeps each of them as it is before it is scheduled."""

    def keep(func: tirx.PrimFunc, target: tvm.target.Target) -> None:
        found.append(func)

    return keep


@dataclass(frozen=True)
class _Compiled:
    """What the pipeline made of a network."""

    module: tvm.IRModule
    plan: UpdatePlan
    times: dict[str, float]
    full_macs: int = 0


def _compile(
    imported: tvm.IRModule,
    config: TrainConfig,
    target: Target,
    instruments: Instruments,
    rules: Sequence[Rule],
) -> _Compiled:
    if not isinstance(config.update, TaskAdaptive):

        def resolve(mod: tvm.IRModule) -> UpdatePlan:
            return resolve_plan(config.update, mod)

        return _Compiled(*compile_module(imported, config, target.to_tvm(), instruments, resolve, rules))
    update = config.update

    def choose(layers: tuple[Layer, ...], whole: frozenset[int]) -> tuple[int, ...]:
        return choose_candidates(update, layers, whole)

    share = update.channel_ratio
    return _Compiled(*compile_adaptive(imported, config, target.to_tvm(), instruments, choose, share, rules))


def _network_text(imported: tvm.IRModule) -> str:
    """The network as it was imported, without its values: shapes, operators and their attributes, the same for every target."""
    return str(imported.without_attr(VALUES).script())


def _digest(text: str, values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of network, options, plan and all initial values: a checkpoint fits this library only."""
    found = hashlib.sha256(text.encode())
    for name in sorted(values):
        found.update(name.encode() + b"\0" + values[name].tobytes())
    return found.hexdigest()[:16]


def _options(config: TrainConfig, target: Target) -> dict[str, Any]:
    return {"target": str(target), **describe_options(config)}


def _library(
    compiled: _Compiled, config: TrainConfig, target: Target, network: str, count_macs: bool
) -> tuple[Library, dict[str, int]]:
    """The library to emit, and the multiply-accumulates of each of its entries."""
    lowered, plan = compiled.module, compiled.plan
    kernels = print_kernels(config.name, lowered, count_macs=count_macs)
    program = analyse_program(lowered)
    values = get_values(lowered)
    adaptive = None
    if isinstance(config.update, TaskAdaptive):
        adaptive, program, own = make_adaptive(lowered, program, kernels, plan, config, config.update)
        values |= own
        arena = merge_arena(adaptive, config)
    else:
        workspaces = {k: c.workspace_bytes for k, c in kernels.items()}
        arena = plan_arena(program, workspaces, capacity=config.budget.memory_bytes)
    specs = {gv.name_hint: f for gv, f in lowered.functions.items() if kernel_kind(f) is not None}
    losses = [f for f in specs.values() if kernel_kind(f) == "softmax_cross_entropy"]
    native = None
    if target.kind == "llvm":
        native = emit_object(lowered, kernels, target.to_tvm(), library=config.name)
    text = json.dumps([network, _options(config, target), plan.to_json()], sort_keys=True)
    used = {s.name for s in program.storages}
    library = Library(
        config.name,
        __version__,
        _digest(text, values),
        program,
        arena,
        kernels,
        {k: v for k, v in values.items() if k in used},
        kernel_spec(losses[0])["classes"] if losses else None,
        minmax="minmax" in target.core.features,
        adaptive=adaptive,
        kernel_object=native,
    )
    macs = {
        e.name: sum(executed_macs(specs[c.kernel]) for c in e.calls if _counts(specs, c.kernel))
        for e in program.entries
    }
    return library, macs


def _counts(specs: Mapping[str, Any], kernel: str) -> bool:
    """Whether a kernel's multiply-accumulates count; one for listed channels runs in place of another that is counted."""
    return kernel in specs and kernel_kind(specs[kernel]) != LISTED
