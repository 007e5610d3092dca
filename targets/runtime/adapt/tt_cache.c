/* The cache of the frozen prefix: what lies before the earliest trained layer never changes, so its
 * result per sample is kept: behind the trained rows, or in a pool of its own. */
#include "tt_rows.h"

#include <float.h>
#include <string.h>

#define LARGEST_INT8 127.0f

static unsigned char *cache_of(const tt_rows_table *table, const uint32_t *plan,
                               unsigned char *arena) {
  return table->cache != NULL ? table->cache : arena + plan[TT_PLAN_END(table)];
}

void tt_cache_choose(const tt_rows_table *table, uint32_t *plan, uint32_t samples, uint32_t budget,
                     unsigned char *arena) {
  const uint32_t depth = plan[TT_PLAN_DEPTH];
  const uint32_t end = plan[TT_PLAN_END(table)];
  const uint32_t limit = budget < table->arena_bytes ? budget : table->arena_bytes;
  const uint32_t spare = end < limit ? limit - end : 0;
  const uint32_t room = table->cache != NULL ? table->cache_bytes : spare;
  plan[TT_PLAN_POINT(table)] = TT_CACHE_INPUT;
  plan[TT_PLAN_SLOTS(table)] = 0;
  if (depth == table->num_candidates)
    return;
  const uint32_t *const bytes = table->slot_bytes + 2 * depth;
  if (samples != 0 && bytes[TT_CACHE_RESULT] != 0 && room / bytes[TT_CACHE_RESULT] >= samples)
    plan[TT_PLAN_POINT(table)] = TT_CACHE_RESULT;
  const uint32_t slot = bytes[plan[TT_PLAN_POINT(table)]];
  const uint32_t slots = slot != 0 ? room / slot : 0;
  unsigned char *const cache = cache_of(table, plan, arena);
  plan[TT_PLAN_SLOTS(table)] = slots;
  for (uint32_t i = 0; i < slots; ++i)
    memset(cache + (size_t)i * slot, 0, TT_CACHE_MARK_BYTES);
}

uint32_t tt_cache_kept_bytes(const tt_rows_table *table, const tt_cache_item *item) {
  uint32_t bytes = item->bytes;
  if (item->floats != 0 && table->cache_format == TT_CACHE_FLOAT16)
    bytes = 2 * item->floats;
  else if (item->floats != 0 && table->cache_format == TT_CACHE_INT8)
    bytes = (uint32_t)sizeof(float) + item->floats;
  return (bytes + 3) / 4 * 4;
}

/* Half precision of IEEE 754, rounded to nearest even. */
static uint16_t to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) /* not a number */
    return (uint16_t)(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) /* rounds to 2^16 or more */
    return (uint16_t)(sign | 0x7c00u);
  if (magnitude < 0x38800000u) { /* below 2^-14: a multiple of 2^-24 */
    const uint32_t exponent = magnitude >> 23;
    if (exponent < 102)
      return (uint16_t)sign;
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126 - exponent;
    const uint32_t rest = mantissa & (((uint32_t)1 << shift) - 1);
    const uint32_t middle = (uint32_t)1 << (shift - 1);
    const uint32_t down = mantissa >> shift;
    return (uint16_t)(sign | (down + (rest > middle || (rest == middle && (down & 1) != 0))));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1);
  return (uint16_t)(sign | rounded >> 13);
}

static float from_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  uint32_t bits;
  float value;
  if (magnitude >= 0x7c00u)
    bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  else if (magnitude >= 0x400u)
    bits = (magnitude << 13) + 0x38000000u;
  else { /* a multiple of 2^-24 */
    value = (float)magnitude * 5.9604644775390625e-8f;
    memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void keep_half(const float *values, uint32_t count, unsigned char *place) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint16_t half = to_half(values[i]);
    memcpy(place + 2 * (size_t)i, &half, sizeof half);
  }
}

static void restore_half(const unsigned char *place, uint32_t count, float *values) {
  for (uint32_t i = 0; i < count; ++i) {
    uint16_t half;
    memcpy(&half, place + 2 * (size_t)i, sizeof half);
    values[i] = from_half(half);
  }
}

/* -127 to 127; not a number is 0. */
static int8_t to_int8(float scaled) {
  if (scaled >= LARGEST_INT8)
    return 127;
  if (scaled <= -LARGEST_INT8)
    return -127;
  return (int8_t)(scaled > 0.0f ? scaled + 0.5f : scaled < 0.0f ? scaled - 0.5f : 0.0f);
}

/* A tensor whose unit would be subnormal is kept as zeros: 1 / unit need not be finite, and cores
 * differ in what they make of it. */
static void keep_int8(const float *values, uint32_t count, unsigned char *place) {
  float largest = 0.0f;
  for (uint32_t i = 0; i < count; ++i) {
    const float magnitude = values[i] < 0.0f ? -values[i] : values[i];
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = largest > FLT_MAX ? FLT_MAX : largest;
  const float whole = largest / LARGEST_INT8;
  const float unit = whole >= FLT_MIN ? whole : 0.0f;
  const float inverse = unit > 0.0f ? 1.0f / unit : 0.0f;
  memcpy(place, &unit, sizeof unit);
  for (uint32_t i = 0; i < count; ++i) {
    const int8_t kept = unit > 0.0f ? to_int8(values[i] * inverse) : 0;
    memcpy(place + sizeof unit + i, &kept, 1);
  }
}

static void restore_int8(const unsigned char *place, uint32_t count, float *values) {
  float unit;
  memcpy(&unit, place, sizeof unit);
  for (uint32_t i = 0; i < count; ++i) {
    int8_t kept;
    memcpy(&kept, place + sizeof unit + i, 1);
    values[i] = (float)kept * unit;
  }
}

static void move(const tt_rows_table *table, const tt_cache_item *item, unsigned char *tensor,
                 unsigned char *place, int load) {
  float *const values = (float *)(void *)tensor;
  if (item->floats != 0 && table->cache_format == TT_CACHE_FLOAT16) {
    if (load)
      restore_half(place, item->floats, values);
    else
      keep_half(values, item->floats, place);
  } else if (item->floats != 0 && table->cache_format == TT_CACHE_INT8) {
    if (load)
      restore_int8(place, item->floats, values);
    else
      keep_int8(values, item->floats, place);
  } else if (load)
    memcpy(tensor, place, item->bytes);
  else
    memcpy(place, tensor, item->bytes);
}

int tt_cache_move(const tt_rows_table *table, const uint32_t *plan, const tt_cache_item *items,
                  uint32_t count, uint32_t slot, unsigned char *arena, int load) {
  const uint32_t stored = 1;
  uint32_t bytes = TT_CACHE_MARK_BYTES;
  for (uint32_t i = 0; i < count; ++i)
    bytes += tt_cache_kept_bytes(table, &items[i]);
  if (slot >= plan[TT_PLAN_SLOTS(table)])
    return TT_ERR_RANGE;
  unsigned char *place = cache_of(table, plan, arena) + (size_t)slot * bytes;
  if (!load)
    memcpy(place, &stored, TT_CACHE_MARK_BYTES);
  else if (memcmp(place, &stored, TT_CACHE_MARK_BYTES) != 0)
    return TT_ERR_STATE;
  place += TT_CACHE_MARK_BYTES;
  for (uint32_t i = 0; i < count; ++i) {
    move(table, &items[i], arena + items[i].offset, place, load);
    place += tt_cache_kept_bytes(table, &items[i]);
  }
  return TT_OK;
}
