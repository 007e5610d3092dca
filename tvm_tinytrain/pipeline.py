"""The compiler on one page: every pass, in order."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.config import MemoryOptions, TrainConfig, lite_modules
from tvm_tinytrain.errors import ArchiveError, KernelError, PlanError
from tvm_tinytrain.passes.append_loss import AppendLoss
from tvm_tinytrain.passes.canonicalize import Canonicalize
from tvm_tinytrain.passes.compress_masks import CompressMasks
from tvm_tinytrain.passes.derive_backward import DeriveBackward
from tvm_tinytrain.passes.derive_fisher import DeriveFisher
from tvm_tinytrain.passes.drop_gradient_stops import DropGradientStops
from tvm_tinytrain.passes.fold_batch_norm import FoldBatchNorm
from tvm_tinytrain.passes.fuse_update import FuseUpdate
from tvm_tinytrain.passes.insert_adapters import InsertAdapters
from tvm_tinytrain.passes.lower_graph import RemoveDeadCode, lower_graph
from tvm_tinytrain.passes.lower_kernels import LowerKernels
from tvm_tinytrain.passes.lower_layers import LowerLayers
from tvm_tinytrain.passes.make_runtime_rows import MakeRuntimeRows
from tvm_tinytrain.passes.narrow_input_grads import NarrowInputGrads
from tvm_tinytrain.passes.normalise_input import NormaliseInput
from tvm_tinytrain.passes.order_gradients import OrderGradients
from tvm_tinytrain.passes.prune_backward import PruneBackward, check_plan, full_update
from tvm_tinytrain.passes.recompute_blocks import RecomputeBlocks
from tvm_tinytrain.passes.reserve_names import ReserveNames
from tvm_tinytrain.passes.reuse_dead_operands import ReuseDeadOperands
from tvm_tinytrain.passes.reverse_mode import differentiable_variables
from tvm_tinytrain.passes.split_weights import SplitWeights, has_row_kernels
from tvm_tinytrain.passes.state import (
    UNTRAINED,
    Layer,
    get_fixed,
    get_layers,
    get_roles,
    get_values,
    with_json,
)
from tvm_tinytrain.passes.stream_blocks import StreamBlocks
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.schedules import RULES, Rule, ScheduleKernels

Passes = list[tvm.ir.transform.Pass]


@dataclass(frozen=True)
class Instruments:
    """What to watch while passes run.

    ``dump_ir``: folder for the module after each pass; ``print_ir``: print it on stderr; ``verify_each``: check that the module is well
    formed after each pass. ``on_pass`` is called with each pass's name before it runs. ``count_macs``: the emitted kernels count the
    multiply-accumulates that they execute (`emit.count_macs`).
    """

    dump_ir: Path | None = None
    print_ir: bool = False
    verify_each: bool = False
    on_pass: Callable[[str], None] | None = field(default=None, compare=False)
    count_macs: bool = False


def canonicalise(update: object = None) -> Passes:
    """One form for all front ends: batch norm folded, layers found, each with its bias and clamp in one kernel.

    Where the ``update`` trains branches beside the network's blocks, they are part of it from here on.
    """
    return [Canonicalize(), FoldBatchNorm(), *adapters(update), ReserveNames(), LowerLayers()]


def adapters(update: object) -> Passes:
    """The lite residual modules of TinyTL and AdapterDrop; nothing for any other update."""
    found = lite_modules(update)
    if found is None:
        return []
    modules, drop = found
    options = {name: getattr(modules, name) for name in ("kernel", "groups", "pool", "gain", "seed")}
    return [InsertAdapters(drop, **options), Canonicalize()]


def derive(config: TrainConfig, plan: UpdatePlan, layers: tuple[Layer, ...]) -> Passes:
    """Loss and backward graph, as far as the plan's layers need it: an operator behind them needs no gradient."""
    wanted = [
        name
        for layer in layers
        if layer.id in plan
        for name, chosen in ((layer.weight, plan[layer.id].weight), (layer.bias, plan[layer.id].bias))
        if name is not None and chosen
    ]
    return [AppendLoss(config.loss), DeriveBackward([*wanted, *config.also_train]), DropGradientStops()]


def check_also_train(names: Sequence[str], mod: tvm.IRModule) -> None:
    """PlanError for a name that is no parameter of which ``predict`` has a gradient."""
    free, of_layers = free_parameters(mod), _of_layers(mod)
    unknown = [name for name in names if name not in {*free, *of_layers}]
    if unknown:
        allowed = ", ".join(free)
        if of_layers:
            more = f"the layers' own, such as {of_layers[0]}"
            allowed = f"{allowed}, and {more}" if allowed else more
        hint = "name parameters with a gradient that are left when batch norms and constants are folded"
        raise PlanError("config", "also_train", ", ".join(unknown), allowed, hint)


def free_parameters(mod: tvm.IRModule) -> list[str]:
    """Names of the parameters of which ``predict`` has a gradient and that belong to no layer: no plan selects them."""
    read = (
        {var.name for var in differentiable_variables(mod["predict"])} - get_fixed(mod) - set(_of_layers(mod))
    )
    return sorted(n for n, value in get_values(mod).items() if n in read and value.dtype == np.float32)


def _of_layers(mod: tvm.IRModule) -> list[str]:
    return [n for la in get_layers(mod) for n in (la.weight, la.bias, *la.other_biases) if n is not None]


def with_shared_biases(config: TrainConfig, plan: UpdatePlan, layers: tuple[Layer, ...]) -> TrainConfig:
    """Where a weight that several operators share is trained whole, the biases of all of them are."""
    whole = (
        la for la in layers if la.id in plan and plan[la.id].bias and len(plan[la.id].outputs) == la.channels
    )
    shared = [name for layer in whole for name in layer.other_biases]
    return replace(config, also_train=tuple(dict.fromkeys((*config.also_train, *shared))))


def prune_and_fuse(config: TrainConfig, plan: UpdatePlan) -> Passes:
    """Only what the plan selects, each gradient consumed where it is made."""
    return [
        PruneBackward(plan, also=config.also_train),
        SplitWeights(),
        FuseUpdate(config.optimizer, accumulate=config.accumulate),
        *([OrderGradients()] if config.memory.order else []),
    ]


def keep_less(options: MemoryOptions, limits: Mapping[str, int], *, apart: bool = False) -> Passes:
    """Less to keep: the input as bytes, blocks computed twice, blocks that stream, masks of one bit.

    ``limits`` are bytes of live tensors by function, as `recompute_limits` gives them. ``apart``: bytes that one
    function leaves are of use even if another one needs them, as in a task-adaptive library, which plans every depth on its own.
    """
    passes: Passes = []
    follow = {"masks": options.masks, "reuse": options.reuse}
    if options.input_dtype == "uint8":
        passes.append(NormaliseInput(options.input_scale, options.input_offset))
    if limits:
        passes.append(RecomputeBlocks(limits, stream=options.stream, **follow))
    if options.stream:
        passes.append(StreamBlocks(**follow, apart=apart))
    return [*passes, CompressMasks()] if options.masks else passes


def recompute_limits(mod: tvm.IRModule, config: TrainConfig, share: Fraction | None = None) -> dict[str, int]:
    """Bytes that the live tensors of each training function may take before blocks are computed again: none, where that is not wanted.

    "auto" leaves them what the memory budget leaves beside trained weights and optimizer state. A task-adaptive library measures Fisher
    potentials before it trains anything; its training leaves room for ``share``, the part of each layer's channels that may be trained.
    """
    names = [n for n in ("step", "accumulate", "fisher") if n in {gv.name_hint for gv in mod.functions}]
    budget = config.budget.memory_bytes
    if config.memory.recompute == "never" or (config.memory.recompute == "auto" and budget is None):
        return {}
    if config.memory.recompute == "lowest" or budget is None:
        return dict.fromkeys(names, 0)
    roles, values = get_roles(mod), get_values(mod)
    kinds = ("param", "state", "grad", *(("list",) if share is not None else ()))
    trained = sum(values[n].nbytes for n, role in roles.items() if role in kinds and n in values)
    potentials = sum(values[n].nbytes for n, role in roles.items() if role == "fisher" and n in values)
    beside = {name: math.ceil(trained * (share or 1)) for name in names} | {"fisher": potentials}
    return {name: max(0, budget - beside[name]) for name in names}


def lower(
    target: tvm.target.Target,
    options: MemoryOptions,
    rules: Sequence[Rule],
    *before_schedules: tvm.ir.transform.Pass,
) -> Passes:
    """Kernels only, scheduled by ``rules``, as flat loops; ``before_schedules`` run in between."""
    in_place: Passes = [ReuseDeadOperands(), RemoveDeadCode()] if options.reuse else []
    return [
        *lower_graph(),
        *before_schedules,
        ScheduleKernels(target, rules),
        *in_place,
        LowerKernels(target),
    ]


def compile_module(
    mod: tvm.IRModule,
    config: TrainConfig,
    target: tvm.target.Target,
    instruments: Instruments,
    choose: Callable[[tvm.IRModule], UpdatePlan],
    rules: Sequence[Rule] = RULES,
) -> tuple[tvm.IRModule, UpdatePlan, dict[str, float]]:
    """Runs the whole pipeline; returns the lowered module, the plan, and seconds per pass.

    ``choose`` resolves the update scheme once the network's layers are known.
    """
    times: dict[str, float] = {}
    runner = _Runner(instruments, times)
    mod = runner(mod, canonicalise(config.update))
    plan = choose(mod)
    layers = get_layers(mod)
    check_also_train(config.also_train, mod)
    mod = with_json(mod, UNTRAINED, [n for n in free_parameters(mod) if n not in config.also_train])
    check_plan(plan, mod, config.also_train)
    config = with_shared_biases(config, plan, layers)
    mod = runner(mod, derive(config, plan, layers))
    mod = runner(mod, prune_and_fuse(config, plan))
    limits = recompute_limits(mod, config)
    mod = runner(mod, [*keep_less(config.memory, limits), *lower(target, config.memory, rules)])
    return mod, plan, times


def compile_adaptive(
    mod: tvm.IRModule,
    config: TrainConfig,
    target: tvm.target.Target,
    instruments: Instruments,
    choose: Callable[[tuple[Layer, ...], frozenset[int]], tuple[int, ...]],
    share: Fraction,
    rules: Sequence[Rule] = RULES,
) -> tuple[tvm.IRModule, UpdatePlan, dict[str, float]]:
    """The pipeline of a task-adaptive library: everything for all candidate layers, over channel lists that are known at run time.

    ``choose`` names the candidates among the network's layers, given these and the ids of those that have no kernels over single
    channels; ``share`` is the part of their channels that may be trained. Returns the lowered module, the plan of all candidates'
    channels, and seconds per pass.
    """
    if config.also_train:
        hint = "use a fixed update, or leave also_train out"
        raise PlanError("task-adaptive", "also_train", ", ".join(config.also_train), "nothing", hint)
    times: dict[str, float] = {}
    runner = _Runner(instruments, times)
    mod = runner(mod, [*canonicalise(), AppendLoss(config.loss)])
    mod = with_json(mod, UNTRAINED, free_parameters(mod))
    layers = get_layers(mod)
    chosen = choose(layers, frozenset(i.id for i in layers if not has_row_kernels(mod, i.weight)))
    by_id = {layer.id: layer for layer in layers}
    trained = [n for i in chosen if i in by_id for n in (by_id[i].weight, by_id[i].bias) if n is not None]
    plan = UpdatePlan(tuple(full_update(by_id[i]) for i in chosen if i in by_id))
    mod = runner(
        mod,
        [
            DeriveFisher(chosen),
            DeriveBackward(trained),
            DropGradientStops(),
            PruneBackward(plan, always_lists=True),
            SplitWeights(),
            FuseUpdate(config.optimizer, accumulate=config.accumulate, by_rows=True),
            *([OrderGradients()] if config.memory.order else []),
        ],
    )
    limits = recompute_limits(mod, config, share)
    mod = runner(
        mod,
        [
            *keep_less(config.memory, limits, apart=True),
            *lower(target, config.memory, rules, NarrowInputGrads(), MakeRuntimeRows()),
        ],
    )
    return mod, plan, times


@dataclass
class _Runner:
    """Runs passes one by one with the instruments around them."""

    instruments: Instruments
    times: dict[str, float]
    count: int = 0

    def __call__(self, mod: tvm.IRModule, passes: Passes) -> tvm.IRModule:
        for each in passes:
            name = str(each.info.name)
            if self.instruments.on_pass is not None:
                self.instruments.on_pass(name)
            start = time.perf_counter()
            mod = each(mod)
            self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - start
            self.count += 1
            self._watch(name, mod)
        return mod

    def _watch(self, name: str, mod: tvm.IRModule) -> None:
        if self.instruments.verify_each:
            try:
                relax.analysis.well_formed(mod)
            except ValueError as error:
                raise KernelError(
                    "pipeline",
                    f"pass {name}",
                    str(error).splitlines()[0],
                    "valid IR after every pass",
                    "report this",
                ) from error
        if self.instruments.dump_ir is not None:
            path = self.instruments.dump_ir / f"{self.count:02d}_{name}.py"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(mod.script(), encoding="utf-8")
            except OSError as error:
                hint = "choose another folder"
                raise ArchiveError("pipeline", str(path), error, "a writable folder", hint) from error
        if self.instruments.print_ir:
            # stdout may be the caller's JSON
            print(f"# after {name}\n{mod.script()}", file=sys.stderr)  # noqa: T201
