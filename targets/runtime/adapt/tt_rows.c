#include "tt_rows.h"

#include <string.h>

static int is_set(const uint8_t *bitmap, uint32_t bit) { return bitmap[bit >> 3] >> (bit & 7) & 1; }

static uint32_t count_bits(const uint8_t *bitmap, uint32_t first, uint32_t bits) {
  uint32_t total = 0;
  for (uint32_t i = 0; i < bits; ++i)
    total += (uint32_t)is_set(bitmap, first + i);
  return total;
}

uint32_t tt_rows_plan_words(const tt_rows_table *table) {
  return TT_PLAN_ROWS + table->num_candidates + table->num_tensors + 1;
}

void tt_rows_clear(const tt_rows_table *table, uint32_t *plan) {
  memset(plan, 0, tt_rows_plan_words(table) * sizeof *plan);
  plan[TT_PLAN_DEPTH] = table->num_candidates;
}

/* Bytes of all rows of a selection, and its depth. */
static uint64_t row_bytes(const tt_rows_table *table, const uint8_t *bitmap, uint32_t *depth) {
  uint64_t total = 0;
  uint32_t first = 0;
  *depth = table->num_candidates;
  for (uint32_t c = 0; c < table->num_candidates; ++c) {
    const uint32_t rows = count_bits(bitmap, first, table->channels[c]);
    first += table->channels[c];
    if (rows != 0 && *depth == table->num_candidates)
      *depth = c;
    for (uint32_t t = 0; t < table->num_tensors; ++t)
      if (table->tensors[t].candidate == c)
        total += (uint64_t)rows * table->tensors[t].row_bytes;
  }
  return total;
}

/* Fills one row tensor. `first` is the candidate's first bit. */
static void fill(const tt_row_tensor *tensor, uint32_t channels, uint32_t first,
                 const uint8_t *bitmap, unsigned char *rows) {
  for (uint32_t channel = 0; channel < channels; ++channel) {
    if (!is_set(bitmap, first + channel))
      continue;
    if (tensor->kind == TT_ROWS_COPY)
      memcpy(rows, (const unsigned char *)tensor->source + (size_t)channel * tensor->row_bytes,
             tensor->row_bytes);
    else if (tensor->kind == TT_ROWS_CHANNELS) {
      const int32_t value = (int32_t)channel;
      memcpy(rows, &value, sizeof value);
    } else
      memset(rows, 0, tensor->row_bytes);
    rows += tensor->row_bytes;
  }
}

int tt_rows_install(const tt_rows_table *table, uint32_t *plan, const uint8_t *bitmap,
                    unsigned char *arena) {
  uint32_t depth;
  const uint64_t bytes = row_bytes(table, bitmap, &depth);
  if (depth == table->num_candidates)
    return TT_ERR_BAD_VALUE;
  if (table->activation_bytes[depth] + bytes > table->arena_bytes)
    return TT_ERR_ARENA_SMALL;
  tt_rows_clear(table, plan);
  plan[TT_PLAN_DEPTH] = depth;
  uint32_t *const rows = plan + TT_PLAN_ROWS;
  uint32_t *const offsets = rows + table->num_candidates;
  uint32_t first = 0;
  for (uint32_t c = 0; c < table->num_candidates; ++c) {
    rows[c] = count_bits(bitmap, first, table->channels[c]);
    first += table->channels[c];
    if (rows[c] != 0)
      plan[TT_PLAN_SELECTED + (c >> 5)] |= (uint32_t)1 << (c & 31);
  }
  uint32_t offset = table->activation_bytes[depth];
  for (uint32_t t = 0; t < table->num_tensors; ++t) {
    const tt_row_tensor *const tensor = &table->tensors[t];
    first = 0;
    for (uint32_t c = 0; c < tensor->candidate; ++c)
      first += table->channels[c];
    offsets[t] = offset;
    fill(tensor, table->channels[tensor->candidate], first, bitmap, arena + offset);
    offset += rows[tensor->candidate] * tensor->row_bytes;
  }
  offsets[table->num_tensors] = (offset + 7) / 8 * 8;
  return TT_OK;
}

uint32_t tt_cache_slots(const tt_rows_table *table, const uint32_t *plan, uint32_t slot_bytes) {
  const uint32_t end = plan[tt_rows_plan_words(table) - 1];
  if (plan[TT_PLAN_DEPTH] == table->num_candidates || slot_bytes == 0 || end >= table->arena_bytes)
    return 0;
  return (table->arena_bytes - end) / slot_bytes;
}

int tt_cache_move(const tt_rows_table *table, const uint32_t *plan, const tt_cache_item *items,
                  uint32_t count, uint32_t slot, unsigned char *arena, int load) {
  uint32_t bytes = 0;
  for (uint32_t i = 0; i < count; ++i)
    bytes += items[i].bytes;
  if (slot >= tt_cache_slots(table, plan, bytes))
    return TT_ERR_RANGE;
  unsigned char *place = arena + plan[tt_rows_plan_words(table) - 1] + slot * bytes;
  for (uint32_t i = 0; i < count; ++i) {
    if (load)
      memcpy(arena + items[i].offset, place, items[i].bytes);
    else
      memcpy(place, arena + items[i].offset, items[i].bytes);
    place += items[i].bytes;
  }
  return TT_OK;
}
