/* TinyTrain's criterion and its ablations: layers by score, of each a share of its channels. */
#include "tt_search.h"

#include <string.h>

static uint64_t denominator_of(const tt_candidate *candidate, uint8_t criterion) {
  switch (criterion) {
  case TT_SELECT_TINYTRAIN:
  case TT_SELECT_EXACT:
    return (uint64_t)candidate->weights * candidate->forward_macs;
  case TT_SELECT_FISHER_MEMORY:
    return candidate->weights;
  case TT_SELECT_FISHER_COMPUTE:
    return candidate->forward_macs;
  default:
    return 1;
  }
}

/* The 128 bits of a * b, from four products of 32 bits. */
static void multiply(uint64_t a, uint64_t b, uint64_t *high, uint64_t *low) {
  const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
  const uint64_t mixed = a1 * b0 + (a0 * b0 >> 32);
  const uint64_t other = a0 * b1 + (uint32_t)mixed;
  *high = a1 * b1 + (mixed >> 32) + (other >> 32);
  *low = other << 32 | (uint32_t)(a0 * b0);
}

/* a / b > c / d without a division. */
static int is_greater(uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  uint64_t left_high, left_low, right_high, right_low;
  multiply(a, d, &left_high, &left_low);
  multiply(c, b, &right_high, &right_low);
  return left_high != right_high ? left_high > right_high : left_low > right_low;
}

uint32_t tt_search_rank(tt_search *s, uint8_t criterion) {
  uint32_t ranked = 0;
  for (uint32_t i = 0; i < s->count; i++) {
    if (s->potential[i] == 0) {
      continue;
    }
    const uint64_t score = s->score[i];
    const uint64_t denominator = denominator_of(&s->candidates[i], criterion);
    uint32_t at = ranked++;
    while (at > 0) {
      const uint32_t other = s->ranking[at - 1];
      if (!is_greater(score, denominator, s->score[other],
                      denominator_of(&s->candidates[other], criterion))) {
        break;
      }
      s->ranking[at] = s->ranking[at - 1];
      at--;
    }
    s->ranking[at] = (uint8_t)i;
  }
  return ranked;
}

void tt_search_take(const tt_search *s, uint32_t ranked, uint32_t numerator, uint32_t denominator,
                    uint8_t overflow, uint16_t *counts) {
  memset(counts, 0, s->count * sizeof *counts);
  for (uint32_t at = 0; at < ranked; at++) {
    const uint32_t i = s->ranking[at];
    const uint32_t share = s->candidates[i].channels * numerator / denominator;
    counts[i] = (uint16_t)(share != 0 ? share : 1);
    if (tt_search_feasible(s, counts)) {
      continue;
    }
    counts[i] = 0;
    if (overflow == TT_SELECT_STOP) {
      return;
    }
  }
}
