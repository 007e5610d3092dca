/* Potentials as integers, and channels in their order.
 *
 * With e the exponent field of a float32 (at least 1), mant its 24 bits of mantissa and E the
 * largest e of all channels, q = mant * 2^8 / 2^(E - e), rounded down: the potential in units of
 * 2^-32 of the next power of two above the largest one. No floating-point operation is made. */
#include "tt_search.h"

#include <string.h>

#define INFINITE 0xffu

static uint32_t exponent_of(uint32_t bits) { return bits >> 23 != 0 ? bits >> 23 : 1; }

static uint32_t mantissa_of(uint32_t bits) {
  return bits >> 23 != 0 ? (bits & 0x7fffffu) | 0x800000u : bits;
}

/* The bits of a potential; -0 is 0. */
static uint32_t bits_of(const float *value) {
  uint32_t bits;
  memcpy(&bits, value, sizeof bits);
  return bits == 0x80000000u ? 0 : bits;
}

static uint32_t quantised(uint32_t bits, uint32_t largest) {
  const uint32_t shift = largest - exponent_of(bits);
  if (shift <= 8) {
    return mantissa_of(bits) << (8 - shift);
  }
  return shift - 8 < 32 ? mantissa_of(bits) >> (shift - 8) : 0;
}

/* Whether channel a of potential qa stands before channel b: more potential, then smaller index. */
static int before(uint32_t qa, uint16_t a, uint32_t qb, uint16_t b) {
  return qa != qb ? qa > qb : a < b;
}

/* Shell's sort with Ciura's gaps: in place, no recursion, hardly worse on any input. */
static void sort(uint32_t *q, uint16_t *order, uint32_t size) {
  static const uint16_t gaps[] = {40412, 17961, 7983, 3548, 1577, 701, 301, 132, 57, 23, 10, 4, 1};
  for (uint32_t g = 0; g < sizeof gaps / sizeof *gaps; g++) {
    const uint32_t gap = gaps[g];
    for (uint32_t k = gap; k < size; k++) {
      const uint32_t value = q[k];
      const uint16_t channel = order[k];
      uint32_t at = k;
      for (; at >= gap && before(value, channel, q[at - gap], order[at - gap]); at -= gap) {
        q[at] = q[at - gap];
        order[at] = order[at - gap];
      }
      q[at] = value;
      order[at] = channel;
    }
  }
}

/* Turns the bits of float32 values in q into sorted, quantised potentials. */
static void sort_all(tt_search *s, uint32_t largest) {
  uint32_t first = 0;
  for (uint32_t i = 0; i < s->count; i++) {
    const uint32_t channels = s->candidates[i].channels;
    uint32_t *const q = s->q + first;
    s->first[i] = first;
    s->potential[i] = 0;
    s->usable[i] = 0;
    for (uint32_t k = 0; k < channels; k++) {
      q[k] = quantised(q[k], largest);
      s->order[first + k] = (uint16_t)k;
      s->potential[i] += q[k];
      s->usable[i] = (uint16_t)(s->usable[i] + (q[k] != 0));
    }
    sort(q, s->order + first, channels);
    first += channels;
  }
}

int tt_search_quantise(tt_search *s, const float *potentials) {
  uint32_t largest = 1;
  for (uint32_t k = 0; k < s->channels; k++) {
    const uint32_t bits = bits_of(potentials + k);
    if (bits >> 23 >= INFINITE) {
      return TT_ERR_BAD_VALUE;
    }
    s->q[k] = bits;
    largest = exponent_of(bits) > largest ? exponent_of(bits) : largest;
  }
  sort_all(s, largest);
  memcpy(s->score, s->potential, s->count * sizeof *s->score);
  return TT_OK;
}

/* splitmix64 (Steele, Lea, Flood 2014), its upper 32 bits. */
static uint32_t draw(uint64_t *state) {
  uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
  z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
  return (uint32_t)((z ^ z >> 31) >> 32);
}

/* The bits of the float32 that equals a number below 2^24. */
static uint32_t float_bits(uint32_t value) {
  uint32_t exponent = 127 + 23;
  if (value == 0) {
    return 0;
  }
  while (value < 0x800000u) {
    value <<= 1;
    exponent--;
  }
  return exponent << 23 | (value & 0x7fffffu);
}

void tt_search_draw(tt_search *s, uint64_t seed) {
  uint32_t largest = 1;
  uint32_t at = 0;
  for (uint32_t i = 0; i < s->count; i++) {
    s->score[i] = draw(&seed);
    for (uint32_t k = 0; k < s->candidates[i].channels; k++) {
      const uint32_t bits = float_bits(draw(&seed) >> 8);
      s->q[at++] = bits;
      largest = exponent_of(bits) > largest ? exponent_of(bits) : largest;
    }
  }
  sort_all(s, largest);
}
