#include "tt_paint.h"

#include <string.h>

static uint32_t pattern(const uint8_t *address) {
  return ((uint32_t)(uintptr_t)address >> 2) * 2654435761u ^ 0xc5a3c5a3u;
}

static int is_painted(const uint8_t *address) {
  uint32_t word;
  memcpy(&word, address, sizeof word);
  return word == pattern(address);
}

void tt_paint(uint8_t *lower, uint8_t *upper) {
  for (uint8_t *p = lower; p < upper; p += 4) {
    uint32_t word = pattern(p);
    memcpy(p, &word, sizeof word);
  }
}

uint32_t tt_painted_peak_from_below(const uint8_t *lower, const uint8_t *upper) {
  const uint8_t *p = upper;
  while (p > lower && is_painted(p - 4)) {
    p -= 4;
  }
  return (uint32_t)(p - lower);
}

uint32_t tt_painted_peak_from_above(const uint8_t *lower, const uint8_t *upper) {
  const uint8_t *p = lower;
  while (p < upper && is_painted(p)) {
    p += 4;
  }
  return (uint32_t)(upper - p);
}

uint32_t tt_painted_touched(const uint8_t *lower, const uint8_t *upper) {
  uint32_t touched = 0;
  for (const uint8_t *p = lower; p < upper; p += 4) {
    touched += is_painted(p) ? 0u : 4u;
  }
  return touched;
}
