"""From the lowered module of a task-adaptive library to what the emitter needs: row tensors, guards, costs, budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from tvm_tinytrain.config import TrainConfig
from tvm_tinytrain.emit.c_adaptive import (
    SLOT_TENSOR,
    AdaptiveLibrary,
    plan_word_count,
)
from tvm_tinytrain.emit.c_kernel import CKernel
from tvm_tinytrain.emit.c_selection import NORMS_TENSOR
from tvm_tinytrain.errors import BudgetError, PlanError
from tvm_tinytrain.own_tensors import CRITERIA, OPTIONS, PLAN, REQUEST, OptionWord
from tvm_tinytrain.passes.adaptive import ALWAYS, AdaptivePlan, plan_adaptive
from tvm_tinytrain.passes.fuse_update import kept_tensors
from tvm_tinytrain.passes.kernels.builder import kernel_kind, kernel_spec
from tvm_tinytrain.passes.kernels.conv_spec import Conv2DSpec
from tvm_tinytrain.passes.kernels.listed import LISTED
from tvm_tinytrain.passes.kernels.stream_spec import StreamSpec
from tvm_tinytrain.passes.plan_memory import ArenaPlan, check_ends
from tvm_tinytrain.passes.program import Program, Storage
from tvm_tinytrain.passes.rewriting import bindings, callee, operands
from tvm_tinytrain.passes.split_weights import ROWS_SUFFIX
from tvm_tinytrain.passes.state import Layer, check_new, get_layers, get_values
from tvm_tinytrain.plan import UpdatePlan
from tvm_tinytrain.selection import TableAccounting, TaskAdaptive, block_starts, of_kind, squared_norms
from tvm_tinytrain.selection.table_accounting import MAX_CANDIDATES
from tvm_tinytrain.values import parse_bytes

NO_LIMIT = 0xFFFFFFFF
_ABLE = (
    "convolutions (plain or depthwise, not transposed, no stride together with dilation) and linear layers"
)


def choose_candidates(
    update: TaskAdaptive, layers: tuple[Layer, ...], whole: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Ids of the layers that may be trained: the last so many, those named, or those from the last so many blocks on, of these
    those of the kind asked for.

    whole: ids of layers without kernels over single channels. Among the last so many layers or blocks they count, so that the
    candidates reach no further back, but are none; where they are named they stay, and the build refuses them.

    A block is a depthwise convolution with the 1×1 convolution that widens its input, if there is one, and what follows it. Raises
    PlanError where the network has fewer blocks than asked for, no layer of that kind, or too many of them.
    """
    places = _in_place(update, layers)
    if update.blocks is not None or isinstance(update.candidates, int):
        able = tuple(i for i in places if i not in whole)
        if not able:
            hint = "take more of the last layers"
            raise PlanError(
                "task-adaptive", f"layers {', '.join(map(str, places))}", "no kernels over single channels", _ABLE, hint
            )  # fmt: skip
        places = able
    chosen = of_kind(update.layer_kind, layers, places)
    if len(chosen) > MAX_CANDIDATES:
        hint = "a device keeps what is selected in 64 bits: choose fewer layers"
        raise PlanError("task-adaptive", "candidates", len(chosen), f"1 to {MAX_CANDIDATES}", hint)
    return chosen


def _in_place(update: TaskAdaptive, layers: tuple[Layer, ...]) -> tuple[int, ...]:
    """Ids of the layers where candidates may stand, whatever their kind."""
    wanted = update.candidates
    if update.blocks is None:
        return tuple(layer.id for layer in layers[-wanted:]) if isinstance(wanted, int) else tuple(wanted)
    starts = block_starts(layers)
    if len(starts) < update.blocks:
        hint = "ask for fewer blocks, or name the candidates"
        allowed = (
            f"1 to {len(starts)} of this network" if starts else "None: no depthwise convolution begins one"
        )
        raise PlanError("task-adaptive", "blocks", update.blocks, allowed, hint)
    return tuple(layer.id for layer in layers[starts[-update.blocks] :])


def row_tensors(
    layers: tuple[Layer, ...], plan: UpdatePlan, config: TrainConfig
) -> dict[str, tuple[int, str]]:
    """{tensor of trained rows: (layer id, what it begins as)}; "zero", "channels", or the flash tensor that it copies."""
    found: dict[str, tuple[int, str]] = {}
    for layer in layers:
        if layer.id not in plan:
            continue
        found[f"channels_{layer.id}"] = (layer.id, "channels")
        for source, shape in ((layer.weight, layer.weight_shape), (layer.bias, (layer.channels,))):
            if source is None:
                continue
            found[source + ROWS_SUFFIX] = (layer.id, source)
            for kept, _, _ in kept_tensors(
                config.optimizer, source + ROWS_SUFFIX, shape, accumulate=config.accumulate
            ):
                found[kept] = (layer.id, "zero")
    return found


def make_adaptive(
    lowered: tvm.IRModule,
    program: Program,
    kernels: Mapping[str, CKernel],
    plan: UpdatePlan,
    config: TrainConfig,
    update: TaskAdaptive,
) -> tuple[AdaptiveLibrary, Program, dict[str, np.ndarray]]:
    """The adaptive part of a library, the program with the plan's own tensors, and those tensors' initial values.

    Raises PlanError for a candidate that has no kernels over rows, or is larger than the device's tables can say; BudgetError where
    the memory budget is below the frozen network's need.
    """
    layers = get_layers(lowered)
    rows = row_tensors(layers, plan, config)
    missing = [n for n in rows if not any(s.name == n for s in program.storages)]
    if missing:
        layer = rows[missing[0]][0]
        raise PlanError(
            "task-adaptive", f"candidate layer {layer}", "no kernels over single channels",
            _ABLE, "leave the layer out of TaskAdaptive(candidates=...)",
        )  # fmt: skip
    candidates = tuple(plan)
    by_id = {layer.id: layer for layer in layers}
    total = sum(by_id[i].channels for i in candidates)
    scratch = select_scratch_bytes(len(candidates), total)
    tensors = sum(1 for _ in rows)
    own: tuple[Storage, ...] = (
        Storage(PLAN, (plan_word_count(len(candidates), tensors),), "int32", "plan"),
        Storage(REQUEST, ((total + 7) // 8,), "uint8", "plan"),
        Storage(OPTIONS, (len(OptionWord),), "int32", "plan"),
        Storage(SLOT_TENSOR, (1,), "int32", "plan"),
    )
    norms = _norms(lowered, by_id, candidates) if update.criterion == "l2" else {}
    own += tuple(Storage(n, v.shape, "float32", "const") for n, v in norms.items())
    for storage in own:
        check_new(storage.name, {s.name for s in program.storages})
    program = replace(program, storages=(*program.storages, *own))
    workspaces = {k: c.workspace_bytes for k, c in kernels.items()}
    owners = {name: layer for name, (layer, _) in rows.items()}
    capacity = config.budget.memory_bytes
    listed = frozenset(gv.name_hint for gv, f in lowered.functions.items() if kernel_kind(f) == LISTED)
    planned = plan_adaptive(program, workspaces, candidates, owners, capacity, scratch, listed)
    full_macs = full_backward_macs(lowered, layers)
    links, row_macs = _costs(lowered, program, planned)
    described = tuple((i, by_id[i].channels, by_id[i].weights, by_id[i].macs) for i in candidates)
    sources = {name: source for name, (_, source) in rows.items()}
    library = AdaptiveLibrary(
        planned,
        sources,
        described,
        links,
        row_macs,
        full_macs,
        update.cache_format,
        parse_bytes(update.cache_bytes),
        bool(norms),
        frozenset(i for i in candidates if by_id[i].bias is None),
    )
    _check_tables(library, program)
    values: dict[str, np.ndarray] = {
        PLAN: np.zeros(own[0].shape, np.int32),
        REQUEST: np.zeros(own[1].shape, np.uint8),
        OPTIONS: _options(update, config, full_macs, arena_bytes(library, config)),
        SLOT_TENSOR: np.zeros(1, np.int32),
        **norms,
    }
    return library, program, values


def _check_tables(library: AdaptiveLibrary, program: Program) -> None:
    """PlanError for a table that the device's types do not hold."""
    try:
        TableAccounting.from_metadata({"adaptive": library.metadata(program)})
    except PlanError as error:
        hint = "leave such layers out of TaskAdaptive(candidates=...)"
        raise PlanError("task-adaptive", error.thing, error.found, error.allowed, hint) from error


def _norms(
    lowered: tvm.IRModule, layers: Mapping[int, Layer], candidates: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The potentials of the criterion "l2": squared norms of the rows of all candidates' weights, one after the other."""
    initial = get_values(lowered)
    found = squared_norms({i: initial[layers[i].weight] for i in candidates})
    return {NORMS_TENSOR: np.concatenate([found[i] for i in candidates])}


def full_backward_macs(lowered: tvm.IRModule, layers: tuple[Layer, ...]) -> int:
    """Multiply-accumulates of FullTrain's backward pass: for each use of a layer's weight dW, and dX where what it reads comes from a
    layer, as the network's input does not; for products of two tensors the adjoint of each that comes from a layer."""
    total = sum(layer.macs for layer in layers)
    unseen = {layer.weight: layer.macs for layer in layers}  # in kernels of several layers
    trained: set[relax.Expr] = set()
    for b in bindings(lowered["predict"]):
        inner = operands(b.value)
        names = [o.name for o in inner if isinstance(o, relax.Var) and o.name in unseen]
        gv = callee(b.value)
        kind = None if gv is None else kernel_kind(lowered[gv])
        if kind == "matmul":
            total += kernel_spec(lowered[gv])["macs"] * sum(o in trained for o in inner)
        elif kind in ("conv2d", "linear", "conv2d_transpose") and names:
            spec = kernel_spec(lowered[gv])
            macs = int(spec["macs"])
            unseen[names[0]] -= macs
            if inner[0] in trained:
                total += Conv2DSpec.from_dict(spec).input_grad_macs if kind == "conv2d" else macs
        elif kind == "streamed_block" and names and inner[0] not in trained:
            unseen[names[0]] -= StreamSpec.from_dict(kernel_spec(lowered[gv])).stages[0].conv.macs
        if names or any(o in trained for o in inner):
            trained.add(b.var)
    return total + sum(unseen.values())


def merge_arena(library: AdaptiveLibrary, config: TrainConfig) -> ArenaPlan:
    """One view of all plans: training at the greatest depth, the Fisher pass, prediction; the arena is the whole budget.

    Its lower bound is that of what it must hold, the rows included.

    Raises PlanError where the arena does not hold what a device runs in it unasked: the frozen network, and without a budget
    whatever is selected.
    """
    size, bound = arena_bytes(library, config), 0
    for depth, arena in enumerate(library.plan.depths):
        if config.budget.arena_bytes is None or depth == len(library.layers):
            check_ends(arena, size - _row_bytes(library, depth))
            bound = max(bound, arena.lower_bound + _row_bytes(library, depth))
    deepest, frozen = library.plan.depths[0], library.plan.depths[-1]
    return ArenaPlan(
        deepest.fixed,
        {**frozen.problems, **deepest.problems},
        {**frozen.plans, **deepest.plans},
        {**frozen.workspaces, **deepest.workspaces},
        size,
        bound,
    )


def arena_bytes(library: AdaptiveLibrary, config: TrainConfig) -> int:
    """The arena of a task-adaptive library: the memory budget, or the most that any selection, or none, would need."""
    if config.budget.arena_bytes is not None:
        return config.budget.arena_bytes
    needs = (b + _row_bytes(library, depth) for depth, b in enumerate(library.plan.activation_bytes))
    return (max(needs) + 7) // 8 * 8


def _row_bytes(library: AdaptiveLibrary, depth: int) -> int:
    """Bytes of the trained rows where all channels of the candidates from ``depth`` on are selected."""
    counts = [channels for _, channels, _, _ in library.layers]
    return sum(library.plan.channel_bytes(i) * counts[i] for i in range(depth, len(counts)))


def select_scratch_bytes(candidates: int, channels: int) -> int:
    """Bytes that the selection on the device works in: the gathered potentials and tt_select's own scratch."""
    return 4 * channels + 6 * channels + 51 * candidates + 16  # TT_SELECT_SCRATCH_BYTES


def _costs(
    lowered: tvm.IRModule, program: Program, planned: AdaptivePlan
) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Multiply-accumulates of the backward pass: (mask, MACs) of calls without rows, and per channel of each candidate.

    A call for listed channels counts as the whole call that it replaces: the budget is kept, and the table stays a sum.
    """
    links = []
    per_channel = [0] * len(planned.candidates)
    name = planned.training_entry
    entry = next(e for e in program.entries if e.name == name)
    capacity = {
        r.candidate: next(s.shape[0] for s in program.storages if s.name == r.name) for r in planned.rows
    }
    for call, guard in zip(entry.calls, planned.guards[name], strict=True):
        func = lowered[call.kernel]
        macs = int(kernel_spec(func).get("macs", 0)) if "tt.spec" in func.attrs else 0
        if not macs or guard.needed == ALWAYS or guard.only_at:
            continue
        if guard.rows is None:
            links.append((guard.needed, macs))
        else:
            per_channel[guard.rows] += macs // capacity[guard.rows]
    return tuple(links), tuple(per_channel)


def _options(update: TaskAdaptive, config: TrainConfig, full_macs: int, memory: int) -> np.ndarray:
    wanted = config.budget.macs_of(full_macs)
    macs = (1 << 64) - 1 if wanted is None else wanted
    if memory > NO_LIMIT:
        raise BudgetError(
            "task-adaptive", "memory budget", memory, f"at most {NO_LIMIT} bytes", "give a smaller budget"
        )
    ratio = update.channel_ratio
    words = {
        OptionWord.MEMORY: memory,
        OptionWord.MACS_LOW: macs & NO_LIMIT,
        OptionWord.MACS_HIGH: macs >> 32,
        OptionWord.CRITERION: CRITERIA.index(update.criterion),
        OptionWord.RATIO: ratio.numerator << 16 | ratio.denominator,
        OptionWord.OVERFLOW: {"skip": 0, "stop": 1}[update.overflow],
        OptionWord.SEED_LOW: update.seed & NO_LIMIT,
        OptionWord.SEED_HIGH: update.seed >> 32 & NO_LIMIT,
        OptionWord.CACHED_SAMPLES: update.cached_samples,
    }
    return np.array([words[word] for word in OptionWord], np.uint32).view(np.int32)
