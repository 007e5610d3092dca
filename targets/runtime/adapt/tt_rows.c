#include "tt_rows.h"

#include <string.h>

static uint32_t ones(uint32_t word) {
  word -= word >> 1 & 0x55555555u;
  word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
  return ((word + (word >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
}

/* The 1 to 32 bits from `first` on. */
static uint32_t bits_at(const uint8_t *bitmap, uint32_t first, uint32_t bits) {
  const uint32_t shift = first & 7;
  const uint8_t *at = bitmap + (first >> 3);
  uint64_t word = 0;
  for (uint32_t i = 0; i < (shift + bits + 7) / 8; ++i)
    word |= (uint64_t)at[i] << (8 * i);
  word >>= shift;
  return (uint32_t)word & (bits == 32 ? UINT32_MAX : ((uint32_t)1 << bits) - 1);
}

static uint32_t count_bits(const uint8_t *bitmap, uint32_t first, uint32_t bits) {
  uint32_t total = 0;
  for (uint32_t i = 0; i < bits; i += 32)
    total += ones(bits_at(bitmap, first + i, bits - i < 32 ? bits - i : 32));
  return total;
}

uint32_t tt_rows_plan_words(const tt_rows_table *table) { return TT_PLAN_SLOTS(table) + 1; }

int tt_rows_is_plan(const tt_rows_table *table, const uint32_t *plan) {
  const uint32_t depth = plan[TT_PLAN_DEPTH];
  return depth == table->num_candidates ||
         (depth < table->num_candidates && plan[TT_PLAN_ROWS + depth] != 0);
}

int tt_rows_is_trained(const tt_rows_table *table, const uint32_t *plan) {
  return tt_rows_is_plan(table, plan) && plan[TT_PLAN_DEPTH] != table->num_candidates;
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

static void fill_row(const tt_row_tensor *tensor, uint32_t channel, unsigned char *row) {
  if (tensor->kind == TT_ROWS_COPY)
    memcpy(row, (const unsigned char *)tensor->source + (size_t)channel * tensor->row_bytes,
           tensor->row_bytes);
  else {
    const int32_t value = (int32_t)channel;
    memcpy(row, &value, sizeof value);
  }
}

/* Fills one row tensor. `first` is the candidate's first bit, `rows` how many of its bits are set.
 */
static void fill(const tt_row_tensor *tensor, uint32_t channels, uint32_t first, uint32_t rows,
                 const uint8_t *bitmap, unsigned char *at) {
  if (tensor->kind == TT_ROWS_ZERO) {
    memset(at, 0, (size_t)rows * tensor->row_bytes);
    return;
  }
  for (uint32_t begin = 0; begin < channels && rows != 0; begin += 32) {
    const uint32_t count = channels - begin < 32 ? channels - begin : 32;
    uint32_t word = bits_at(bitmap, first + begin, count);
    for (uint32_t channel = begin; word != 0; ++channel, word >>= 1) {
      if ((word & 1) == 0)
        continue;
      fill_row(tensor, channel, at);
      at += tensor->row_bytes;
    }
  }
}

int tt_rows_install(const tt_rows_table *table, uint32_t *plan, const uint8_t *bitmap,
                    unsigned char *arena) {
  uint32_t depth;
  const uint64_t bytes = row_bytes(table, bitmap, &depth);
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
    fill(tensor, table->channels[tensor->candidate], first, rows[tensor->candidate], bitmap,
         arena + offset);
    offset += rows[tensor->candidate] * tensor->row_bytes;
  }
  offsets[table->num_tensors] = (offset + 7) / 8 * 8;
  return TT_OK;
}
