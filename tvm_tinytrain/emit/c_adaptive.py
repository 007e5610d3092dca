"""The part of a task-adaptive library that a fixed one does not have: guarded calls, plans by depth, selection on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm_tinytrain.config import CACHE_FORMATS
from tvm_tinytrain.emit.c_cache import Points, cache_macros, cache_pool, cache_tables, slot_bytes
from tvm_tinytrain.emit.c_kernel import CKernel
from tvm_tinytrain.emit.c_selection import selection_entries
from tvm_tinytrain.own_tensors import PLAN
from tvm_tinytrain.passes.adaptive import ALWAYS, TRAINING, AdaptivePlan, Guard
from tvm_tinytrain.passes.frozen_prefix import cache_points
from tvm_tinytrain.passes.plan_memory import ArenaPlan
from tvm_tinytrain.passes.program import Entry, KernelCall, Program
from tvm_tinytrain.targets.runtime_files import runtime_folder

SLOT_TENSOR = "slot"


@dataclass(frozen=True)
class AdaptiveLibrary:
    """What the emitter knows beyond a fixed library.

    ``sources`` says for each row tensor what it begins as: "zero", "channels", or the name of the flash tensor it is copied from.
    ``layers`` are (id, channels, weights, forward MACs) of each candidate; ``links`` are (guard mask, MACs) of the calls that a
    budget counts. ``cache_bytes``: of the cache's own pool, 0 without one. ``has_norms``: the squared norms of all candidates'
    rows stand in flash, for the criterion "l2". ``without_bias``: ids of the candidates that have none to train.
    """

    plan: AdaptivePlan
    sources: Mapping[str, str]
    layers: tuple[tuple[int, int, int, int], ...]
    links: tuple[tuple[int, int], ...]
    row_macs: tuple[int, ...]
    full_macs: int
    cache_format: str = "float32"
    cache_bytes: int = 0
    has_norms: bool = False
    without_bias: frozenset[int] = frozenset()

    @property
    def cached(self) -> tuple[str, str]:
        """Entries that can reuse the frozen prefix."""
        return ("predict", self.plan.training_entry)

    @property
    def extra_entries(self) -> tuple[str, ...]:
        """Entries beside the program's: ``step`` calls ``accumulate`` and ``apply`` where these are entries of their own."""
        step = () if self.plan.training_entry == "step" else ("step",)
        modes = (f"{e}_{m}" for e in self.cached for m in ("store", "cached"))
        return (*step, "fisher_begin", "select", "install", "release", *modes)

    @property
    def total_channels(self) -> int:
        """Output channels of all candidates."""
        return sum(channels for _, channels, _, _ in self.layers)

    def row_index(self, name: str) -> int | None:
        """Position of a row tensor, None for any other tensor."""
        for index, row in enumerate(self.plan.rows):
            if row.name == name:
                return index
        return None

    def arena(self, entry: str, depth: int) -> ArenaPlan | None:
        """The arena plan that holds an entry at a depth."""
        plan = self.plan.depths[depth]
        return plan if entry in plan.plans else None

    def slot_bytes(self, program: Program) -> list[list[int]]:
        """Bytes that the cache of the frozen prefix takes per sample, by depth and point."""
        pairs = cache_points(program, self.plan.guards, self.cached, len(self.layers))["predict"]
        return [
            [slot_bytes([program.storage(n) for n in point.live], self.cache_format) for point in pair]
            for pair in pairs
        ]

    def plan_words(self) -> dict[str, int]:
        """Where what stands in the tensor ``plan`` (``tt_rows.h``)."""
        end = 3 + len(self.layers) + len(self.plan.rows)
        return {"depth": 0, "selected": 1, "rows": 3, "offsets": 3 + len(self.layers), "end": end,
                "cache_point": end + 1, "measured": end + 2, "cache_slots": end + 3}  # fmt: skip

    def metadata(self, program: Program) -> dict[str, Any]:
        """The block ``adaptive`` of the library's metadata."""
        return {
            "candidates": [
                {"layer": layer, "channels": channels, "weights": weights, "forward_macs": macs,
                 "channel_bytes": self.plan.channel_bytes(i), "channel_macs": self.row_macs[i],
                 "bias": layer not in self.without_bias}
                for i, (layer, channels, weights, macs) in enumerate(self.layers)
            ],
            "activation_bytes": list(self.plan.activation_bytes),
            "links": [{"needed": needed, "macs": macs} for needed, macs in self.links],
            "full_macs": self.full_macs,
            "rows": [{"name": r.name, "candidate": r.candidate, "row_bytes": r.row_bytes,
                 "kind": row_kind(self.sources[r.name])} for r in self.plan.rows],
            "cache": {"slot_bytes": self.slot_bytes(program), "format": self.cache_format,
                      "pool_bytes": self.cache_bytes},
            "plan_words": self.plan_words(),
        }  # fmt: skip


def plan_word_count(candidates: int, tensors: int) -> int:
    """Words of the tensor ``plan`` (``tt_rows.h``)."""
    return 3 + candidates + tensors + 4


def row_kind(source: str) -> str:
    """What a row tensor is to a checkpoint: "copy" (saved), "zero" or "channels" (made anew)."""
    return source if source in ("zero", "channels") else "copy"


def moving_buffers(adaptive: AdaptiveLibrary, entry: str) -> list[str]:
    """Names of an entry's buffers whose place depends on the depth, in a stable order."""
    names: dict[str, None] = {}
    for depth in range(len(adaptive.plan.depths)):
        plan = adaptive.arena(entry, depth)
        if plan is not None:
            names.update((n, None) for n in plan.plans[entry] if n not in plan.fixed)
    return sorted(names)


def workspace_names(adaptive: AdaptiveLibrary, entry: Entry, depth: int) -> dict[int, str]:
    """{position of the call in the entry: workspace buffer} at one depth; only calls that run there have one."""
    plan = adaptive.arena(entry.name, depth)
    if plan is None:
        return {}
    selected = ((1 << len(adaptive.layers)) - 1) >> depth << depth
    guards = adaptive.plan.guards[entry.name]
    running = [i for i, guard in enumerate(guards) if guard.runs(selected)]
    return {i: name for i, name in zip(running, plan.workspaces[entry.name], strict=True) if name is not None}


def guard_text(guard: Guard) -> str | None:
    """The C condition of a call, None for one that always runs."""
    earliest = "plan[TT_PLAN_DEPTH]"
    if guard.only_at == (guard.rows,):  # then its rows and its need are certain
        return f"{earliest} == {guard.rows}"
    if guard.only_at:
        return f"rows[{guard.rows}] != 0 && ({' || '.join(f'{earliest} == {p}' for p in guard.only_at)})"
    parts = [f"{earliest} != {p}" for p in guard.not_at]
    if guard.rows is not None:
        parts.append(f"rows[{guard.rows}] != 0")
    if guard.needed != ALWAYS and (guard.rows is None or guard.needed != 1 << guard.rows):
        parts.append(f"(selected & UINT64_C(0x{guard.needed:x})) != 0")
    return " && ".join(parts) or None


def entry_body(
    adaptive: AdaptiveLibrary, program: Program, entry: Entry, kernels: Mapping[str, CKernel], constant: str
) -> tuple[list[str], str]:
    """Statements of an entry, and the table of offsets by depth that they read (empty where nothing moves)."""
    names = moving_buffers(adaptive, entry.name)
    spaces = [workspace_names(adaptive, entry, depth) for depth in range(len(adaptive.plan.depths))]
    columns = [f"{entry.name}.call_{i}" for i in sorted({call for at in spaces for call in at})]
    tensors = [n for n in names if not _is_workspace(n)]
    index = {n: i for i, n in enumerate([*tensors, *columns])}
    lines: list[str] = []
    points = points_of(adaptive, program, entry)
    cuts = {point.cut for pair in points for point in pair}
    for i, (call, guard) in enumerate(zip(entry.calls, adaptive.plan.guards[entry.name], strict=True)):
        if i in cuts:
            lines += [
                f"  if (mode == TT_STORE && cut == {i} && tt_cache_move(CACHE_ARGUMENTS, 0) != TT_OK)",
                "    return TT_ERR_RANGE;",
            ]
        if not adaptive.plan.ever_runs(guard):
            continue
        args = [_argument(adaptive, program, entry, name, index, constant) for name in call.args]
        kernel = kernels[call.kernel]
        if kernel.runtime_rows:
            args.append(f"(int32_t)rows[{guard.rows}]")
        if kernel.workspace_bytes:
            args.append(f"base + at[{index[f'{entry.name}.call_{i}']}]")
        skipped = f"first <= {i}" if cuts and i < max(cuts) else None
        lines += _guarded(call, guard, f"{kernel.name}({', '.join(args)});", skipped)
    return lines, _offset_table(adaptive, entry, tensors, columns, spaces)


def points_of(adaptive: AdaptiveLibrary, program: Program, entry: Entry) -> Points:
    """The entry's cache points by depth, none for entries that run once per sample anyway."""
    if entry.name not in adaptive.cached:
        return ()
    return cache_points(program, adaptive.plan.guards, adaptive.cached, len(adaptive.layers))[entry.name]


def _guarded(call: KernelCall, guard: Guard, text: str, skipped: str | None) -> Iterable[str]:
    condition = " && ".join(c for c in (skipped, guard_text(guard)) if c is not None) or None
    yield f"  /* {call.note} */"
    if condition is None:
        yield f"  {text}"
    else:
        yield f"  if ({condition})"
        yield f"    {text}"


def _is_workspace(name: str) -> bool:
    return ".workspace_" in name or name.endswith(".scratch")


def _offset_table(
    adaptive: AdaptiveLibrary,
    entry: Entry,
    tensors: list[str],
    columns: list[str],
    spaces: Sequence[Mapping[int, str]],
) -> str:
    if not tensors and not columns:
        return ""
    rows = []
    none = len(adaptive.layers)
    for depth in range(none, none + 1) if entry.name == "fisher" else range(none + 1):
        plan = adaptive.arena(entry.name, depth)
        if plan is None:
            rows.append([0] * (len(tensors) + len(columns)))
            continue
        offsets = plan.plans[entry.name]
        row = [offsets[n] if n in offsets else 0 for n in tensors]  # noqa: SIM401 (a plan is no dict)
        for column in columns:
            space = spaces[depth].get(int(column.rsplit("_", 1)[1]))
            row.append(offsets[space] if space is not None else 0)
        rows.append(row)
    body = ",\n".join("    {" + ", ".join(str(v) for v in row) + "}" for row in rows)
    width = len(tensors) + len(columns)
    note = f"/* Offsets of what {entry.name} uses, by the earliest selected candidate. */"
    return f"{note}\nstatic const uint32_t {entry.name}_at[{len(rows)}][{width}] = {{\n{body}}};\n"


def _argument(
    adaptive: AdaptiveLibrary,
    program: Program,
    entry: Entry,
    name: str,
    index: Mapping[str, int],
    constant: str,
) -> str:
    storage = program.storage(name)
    macro = {"float32": "TT_F32", "int32": "TT_I32", "uint8": "TT_U8"}[storage.dtype]
    row = adaptive.row_index(name)
    if row is not None:
        return f"{macro}(offsets[{row}])"
    if storage.role in ("const", "list"):
        return f"{constant}_{name}"
    if name in index:
        return f"{macro}(at[{index[name]}])"
    return f"{macro}({adaptive.plan.depths[-1].fixed[name]})"


def adaptive_entry(
    adaptive: AdaptiveLibrary,
    program: Program,
    entry: Entry,
    kernels: Mapping[str, CKernel],
    prefix: str,
    checks: list[str],
) -> str:
    """One entry of a task-adaptive library: the offsets of the present depth, then its calls, each behind its guard."""
    calls, table = entry_body(adaptive, program, entry, kernels, prefix)
    points = points_of(adaptive, program, entry)
    text = "\n".join(calls)
    none = len(adaptive.layers)
    head = (
        f"static int run_{entry.name}(void *arena, int mode)"
        if points
        else f"int {prefix}_{entry.name}(void *arena)"
    )
    lines = [
        f"{head} {{",
        "  unsigned char *const base = (unsigned char *)arena;",
        "  const uint32_t *const plan = TT_PLAN(base);",
    ]
    if "rows[" in text:
        lines.append("  const uint32_t *const rows = plan + TT_PLAN_ROWS;")
    if "offsets[" in text:
        lines.append(f"  const uint32_t *const offsets = plan + TT_PLAN_ROWS + {none};")
    if "selected &" in text:
        lines.append(
            "  const uint64_t selected = (uint64_t)plan[TT_PLAN_SELECTED + 1] << 32 | plan[TT_PLAN_SELECTED];"
        )
    refused = {
        "predict": ("!tt_rows_is_plan(&rows_table, plan)", "init first"),
        "fisher": (
            f"plan[TT_PLAN_DEPTH] != {none} || plan[TT_PLAN_MEASURED(&rows_table)] == 0",
            "fisher_begin first",
        ),
        **dict.fromkeys((*TRAINING, "apply"), ("!tt_rows_is_trained(&rows_table, plan)", "select first")),
    }
    if entry.name in refused:
        condition, why = refused[entry.name]
        lines += [f"  if ({condition}) /* {why} */", "    return TT_ERR_STATE;"]
    if entry.name == "predict":  # its tensors lie where the potentials do
        lines.append("  TT_PLAN(base)[TT_PLAN_MEASURED(&rows_table)] = 0;")
    if table:
        depth = "0" if entry.name == "fisher" else "plan[TT_PLAN_DEPTH]"
        lines.append(f"  const uint32_t *const at = {entry.name}_at[{depth}];")
    if not table and "plan" not in "".join(lines[3:]):
        lines.append("  (void)plan;")
    if not points:
        return "\n".join([table, *lines, *checks, text, "  return TT_OK;", "}", ""])
    begin = [
        "  const uint32_t point = 2 * plan[TT_PLAN_DEPTH] + plan[TT_PLAN_POINT(&rows_table)];",
        f"  const uint32_t cut = mode == TT_PLAIN ? 0 : {entry.name}_cut[point];",
        "  const uint32_t first = mode == TT_CACHED ? cut : 0;",
        f"  if (mode != TT_PLAIN && plan[TT_PLAN_DEPTH] == {none}) /* nothing is selected */",
        "    return TT_ERR_STATE;",
        "  const int status = mode == TT_CACHED ? tt_cache_move(CACHE_ARGUMENTS, 1) : TT_OK;",
        "  if (status != TT_OK)",
        "    return status;",
    ]
    modes = [
        f"int {prefix}_{entry.name}{suffix}(void *arena) {{ return run_{entry.name}(arena, {mode}); }}"
        for suffix, mode in (("", "TT_PLAIN"), ("_store", "TT_STORE"), ("_cached", "TT_CACHED"))
    ]
    define, undefine = cache_macros(adaptive.plan.depths[-1].fixed[SLOT_TENSOR], entry)
    cache = cache_tables(adaptive.plan.depths, program, entry, points)
    body = [*lines, *checks, *begin, text, "  return TT_OK;", "}"]
    return "\n".join([table, cache, define, *body, undefine, "", *modes, ""])


def adaptive_extras(
    adaptive: AdaptiveLibrary, program: Program, prefix: str, arena: ArenaPlan
) -> tuple[str, str]:
    """(what stands before the entries: tables; what stands behind them: fisher_begin, select, install, release)."""
    return _tables(adaptive, program, prefix, arena), selection_entries(adaptive, prefix, arena)


def _tables(adaptive: AdaptiveLibrary, program: Program, prefix: str, arena: ArenaPlan) -> str:
    count = len(adaptive.layers)
    channels = ", ".join(str(c) for _, c, _, _ in adaptive.layers)
    activation = ", ".join(str(b) for b in adaptive.plan.activation_bytes)
    slots = ", ".join(str(b) for pair in adaptive.slot_bytes(program) for b in pair)
    rows = []
    for row in adaptive.plan.rows:
        source = adaptive.sources[row.name]
        kind, pointer = {"zero": ("TT_ROWS_ZERO", "NULL"), "channels": ("TT_ROWS_CHANNELS", "NULL")}.get(
            source, ("TT_ROWS_COPY", f"{prefix}_{source}")
        )
        rows.append(f"    {{{row.candidate}, {kind}, {row.row_bytes}, {pointer}}}, /* {row.name} */")
    candidates = [
        f"    {{{layer}, {ch}, {weights}, {macs}, {adaptive.plan.channel_bytes(i)}, {adaptive.row_macs[i]}}},"
        for i, (layer, ch, weights, macs) in enumerate(adaptive.layers)
    ]
    links = [f"    {{UINT64_C(0x{needed:x}), {macs}}}," for needed, macs in adaptive.links] or ["    {0, 0},"]
    return "\n".join(
        [
            '#include "tt_checkpoint.h"',
            '#include "tt_rows.h"',
            '#include "tt_select.h"',
            "",
            "enum { TT_PLAIN, TT_STORE, TT_CACHED };",
            f"#define TT_PLAN(base) ((uint32_t *)(void *)((base) + {arena.fixed[PLAN]}))",
            "",
            f"static const uint16_t candidate_channels[{count}] = {{{channels}}};",
            "/* Where the trained rows begin, by the earliest selected candidate. */",
            f"static const uint32_t activation_bytes[{count + 1}] = {{{activation}}};",
            "/* Bytes of a sample in the cache, by the earliest selected candidate: of its input; of its frozen result too. */",
            f"static const uint32_t slot_bytes[{2 * count}] = {{{slots}}};",
            f"static const tt_row_tensor row_tensors[{len(rows)}] = {{",
            *rows,
            "};",
            *cache_pool(adaptive.cache_bytes),
            f"static const tt_rows_table rows_table = {{{count}, {len(rows)}, {prefix.upper()}_ARENA_BYTES, "
            f"candidate_channels, activation_bytes, row_tensors, slot_bytes, {CACHE_FORMATS.index(adaptive.cache_format)}, "
            f"{'cache_pool' if adaptive.cache_bytes else 'NULL'}, {adaptive.cache_bytes}}};",
            "/* layer, channels, weights, forward MACs, bytes and MACs of one trained channel */",
            f"static const tt_candidate candidates[{count}] = {{",
            *candidates,
            "};",
            "/* Backward calls: candidates whose gradients need them, MACs. */",
            f"static const tt_chain_link links[{len(links)}] = {{",
            *links,
            "};",
            f"static const tt_select_problem problem = {{{count}, candidates, activation_bytes, {len(adaptive.links)}, links}};",
            "",
        ]
    )


def runtime_files() -> dict[str, bytes]:
    """The C files that every task-adaptive library carries, verbatim."""
    folder = runtime_folder() / "adapt"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in (".c", ".h")}
