"""The C of the frozen prefix's cache: where an entry can be cut, and what has to be kept there."""

from __future__ import annotations

from collections.abc import Sequence

from tvm_tinytrain.passes.frozen_prefix import CachePoint
from tvm_tinytrain.passes.plan_memory import ArenaPlan
from tvm_tinytrain.passes.program import Entry, Program, Storage

_MARK_BYTES = 4
"""TT_CACHE_MARK_BYTES of ``tt_rows.h``."""
Points = tuple[tuple[CachePoint, CachePoint], ...]


def kept_bytes(storage: Storage, cache_format: str) -> int:
    """Bytes that a tensor takes in the cache, as ``tt_cache_kept_bytes`` counts them."""
    found = storage.bytes
    if storage.dtype == "float32" and cache_format == "float16":
        found = storage.bytes // 2
    elif storage.dtype == "float32" and cache_format == "int8":
        found = 4 + storage.bytes // 4
    return (found + 3) // 4 * 4


def slot_bytes(live: Sequence[Storage], cache_format: str) -> int:
    """Bytes that a sample of these tensors takes in the cache with the mark that it was stored; 0 where nothing is kept."""
    found = sum(kept_bytes(s, cache_format) for s in live)
    return found + _MARK_BYTES if found else 0


def cache_macros(slot: int, entry: Entry) -> tuple[str, str]:
    """Definition and end of the arguments of tt_cache_move but the last, which are the same at every cache point of an entry."""
    items = f"{entry.name}_live + {entry.name}_from[point]"
    count = f"{entry.name}_from[point + 1] - {entry.name}_from[point]"
    lines = ["#define CACHE_ARGUMENTS \\", f"  &rows_table, plan, {items}, \\", f"      {count}, \\"]
    text = "\n".join([*lines, f"      *(const uint32_t *)(const void *)(base + {slot}), base"])
    return text, "#undef CACHE_ARGUMENTS"


def cache_pool(size: int) -> list[str]:
    """The pool of the cache, nothing without one."""
    if not size:
        return []
    return [
        "/* Where the cache of the frozen prefix lies: define TT_CACHE_SECTION as an attribute to place it.",
        " * All arenas of this library share it: one at a time may store and use what it stored. */",
        "#ifndef TT_CACHE_SECTION",
        "#define TT_CACHE_SECTION",
        "#endif",
        f"static unsigned char cache_pool[{size}] TT_CACHE_SECTION;",
    ]


def cache_tables(depths: Sequence[ArenaPlan], program: Program, entry: Entry, points: Points) -> str:
    """For each depth and point where the entry may be cut, and the places and sizes of what is alive there."""
    items, starts = [], [0]
    for depth, pair in enumerate(points):
        plan = depths[depth]
        for point in pair:
            items += [(plan.offset(entry.name, n), program.storage(n)) for n in point.live]
            starts.append(len(items))
    cuts = ", ".join(str(point.cut) for pair in points for point in pair)
    rows = [
        f"    {{{offset}, {s.bytes}, {s.bytes // 4 if s.dtype == 'float32' else 0}}}, /* {s.name} */"
        for offset, s in items
    ]
    count = 2 * len(points)
    return "\n".join(
        [
            f"/* Where {entry.name} may begin, by the earliest selected candidate and by tt_cache_point, and what is alive there. */",
            f"static const uint16_t {entry.name}_cut[{count + 1}] = {{{cuts}, 0}};",
            f"static const uint16_t {entry.name}_from[{count + 2}] = {{{', '.join(map(str, starts))}, {starts[-1]}}};",
            f"static const tt_cache_item {entry.name}_live[{max(1, len(items))}] = {{",
            *(rows or ["    {0, 0, 0},"]),
            "};",
        ]
    )
