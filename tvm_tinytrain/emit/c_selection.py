"""The entries of a task-adaptive library that decide what is trained, and that save and load it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_tinytrain.own_tensors import HYPER, OPTIONS, PLAN, REQUEST
from tvm_tinytrain.own_tensors import OptionWord as Word
from tvm_tinytrain.passes.plan_memory import ArenaPlan

if TYPE_CHECKING:
    from tvm_tinytrain.emit.c_adaptive import AdaptiveLibrary

NORMS_TENSOR = "squared_norms"
"""Potentials of the criterion "l2", in flash."""


def selection_entries(adaptive: AdaptiveLibrary, prefix: str, arena: ArenaPlan) -> str:
    """fisher_begin, install, release, save, load and select."""
    fisher = adaptive.plan.depths[-1]
    offsets = ", ".join(str(fisher.offset("fisher", f"delta_{layer}")) for layer, _, _, _ in adaptive.layers)
    count, total = len(adaptive.layers), adaptive.total_channels
    scratch = fisher.plans["fisher"]["fisher.scratch"]
    size = next(b.size for b in fisher.problems["fisher"].buffers if b.name == "fisher.scratch")
    request, options = arena.fixed[REQUEST], arena.fixed[OPTIONS]
    memory = f"words[{Word.MEMORY}]"
    values = (
        f"(uint8_t)words[{Word.CRITERION}], (uint8_t)words[{Word.OVERFLOW}], (uint16_t)(words[{Word.RATIO}] >> 16), "
        f"(uint16_t)words[{Word.RATIO}],\n{' ' * 37}{memory} < rows_table.arena_bytes ? {memory} : rows_table.arena_bytes,\n"
        f"{' ' * 37}(uint64_t)words[{Word.MACS_HIGH}] << 32 | words[{Word.MACS_LOW}], "
        f"(uint64_t)words[{Word.SEED_HIGH}] << 32 | words[{Word.SEED_LOW}]"
    )
    plan, hyper = arena.fixed[PLAN], arena.fixed[HYPER]
    l2 = (
        f"known = {prefix}_{NORMS_TENSOR};"
        if adaptive.has_norms
        else "return TT_ERR_BAD_VALUE; /* built for another criterion */"
    )
    spare = ""
    if total % 8:
        spare = f"""  if (base[{request + total // 8}] >> {total % 8} != 0) /* bits behind the last channel */
    return TT_ERR_BAD_VALUE;
"""
    step = f"""int {prefix}_step(void *arena) {{
  const int status = {prefix}_accumulate(arena);
  return status == TT_OK ? {prefix}_apply(arena) : status;
}}

"""
    if "step" not in adaptive.extra_entries:
        step = ""
    norms = f"  if (options.criterion == TT_SELECT_L2)\n    {l2}"
    return f"""static const uint32_t delta_at[{count}] = {{{offsets}}};

int {prefix}_fisher_begin(void *arena) {{
  unsigned char *const base = (unsigned char *)arena;
  if (TT_PLAN(base)[TT_PLAN_DEPTH] != {count}) /* release first */
    return TT_ERR_STATE;
  for (uint32_t c = 0; c < {count}; ++c)
    memset(base + delta_at[c], 0, candidate_channels[c] * sizeof(float));
  TT_PLAN(base)[TT_PLAN_MEASURED(&rows_table)] = 1;
  return TT_OK;
}}

/* Behind every new plan. Adam begins anew: its bias corrections are those before the first step. What the cache keeps depends on
 * the samples that it should have room for and on the memory budget: the last and the first word of the options. */
static int settled(unsigned char *base, int status) {{
  if (status == TT_OK) {{
    const uint32_t *const words = (const uint32_t *)(const void *)(base + {options});
    memset(base + {hyper} + sizeof(float), 0, 2 * sizeof(float));
    tt_cache_choose(&rows_table, TT_PLAN(base), words[{Word.CACHED_SAMPLES}], words[{Word.MEMORY}], base);
  }}
  return status;
}}

int {prefix}_install(void *arena) {{
  unsigned char *const base = (unsigned char *)arena;
  if (!tt_rows_is_plan(&rows_table, TT_PLAN(base))) /* init first */
    return TT_ERR_STATE;
{spare}  return settled(base, tt_rows_install(&rows_table, TT_PLAN(base), base + {request}, base));
}}

int {prefix}_release(void *arena) {{
  unsigned char *const base = (unsigned char *)arena;
  if (!tt_rows_is_plan(&rows_table, TT_PLAN(base))) /* init first */
    return TT_ERR_STATE;
  tt_rows_clear(&rows_table, TT_PLAN(base));
  return TT_OK;
}}

size_t {prefix}_save_size(const void *arena) {{
  const unsigned char *const base = (const unsigned char *)arena;
  return tt_checkpoint_size(&rows_table, (const uint32_t *)(const void *)(base + {plan}));
}}

int {prefix}_save(const void *arena, void *buffer, size_t capacity) {{
  const unsigned char *const base = (const unsigned char *)arena;
  return tt_checkpoint_write(&rows_table, {prefix}_library.digest, (const uint32_t *)(const void *)(base + {plan}), base,
                             buffer, capacity);
}}

int {prefix}_save_to(const void *arena, tt_checkpoint_sink sink, void *context) {{
  const unsigned char *const base = (const unsigned char *)arena;
  return tt_checkpoint_save(&rows_table, {prefix}_library.digest, (const uint32_t *)(const void *)(base + {plan}), base, sink,
                            context);
}}

{step}int {prefix}_load(void *arena, const void *bytes, size_t count) {{
  unsigned char *const base = (unsigned char *)arena;
  int status = TT_ERR_STATE; /* init first */
  if (tt_rows_is_plan(&rows_table, TT_PLAN(base)))
    status = settled(base, tt_checkpoint_load(&rows_table, {prefix}_library.digest, bytes, count, TT_PLAN(base), base));
  if (status == TT_OK)
    memcpy(base + {request}, (const unsigned char *)bytes + TT_CHECKPOINT_HEADER, {(total + 7) // 8}); /* what is installed */
  return status;
}}

int {prefix}_select(void *arena) {{
  unsigned char *const base = (unsigned char *)arena;
  const uint32_t *const words = (const uint32_t *)(const void *)(base + {options});
  float *const potentials = (float *)(void *)(base + {scratch});
  const tt_select_options options = {{{values}, 16384}};
  const float *known = potentials;
  tt_select_result result;
  uint32_t first = 0;
  int status;
  if (TT_PLAN(base)[TT_PLAN_DEPTH] != {count}) /* release first */
    return TT_ERR_STATE;
  if (words[{Word.CRITERION}] > TT_SELECT_EXACT || words[{Word.OVERFLOW}] > TT_SELECT_STOP)
    return TT_ERR_BAD_VALUE;
{norms}
  else if (options.criterion != TT_SELECT_RANDOM && TT_PLAN(base)[TT_PLAN_MEASURED(&rows_table)] == 0) /* fisher_begin first */
    return TT_ERR_STATE;
  for (uint32_t c = 0; c < {count}; ++c) {{
    memcpy(potentials + first, base + delta_at[c], candidate_channels[c] * sizeof(float));
    first += candidate_channels[c];
  }}
  status = tt_select(&problem, &options, known, potentials + {total}, {size - 4 * total}, base + {request}, &result);
  return status == TT_OK ? {prefix}_install(arena) : status;
}}
"""
