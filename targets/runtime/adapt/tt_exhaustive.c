/* All counts of a small problem: depth first, with bounds, the stack written out. */
#include "tt_search.h"

#include <string.h>

int tt_search_is_small(const tt_search *s, uint32_t limit) {
  uint64_t vectors = 1;
  for (uint32_t i = 0; i < s->count; i++) {
    vectors *= (uint64_t)s->usable[i] + 1;
    if (vectors > limit) {
      return 0;
    }
  }
  return vectors <= limit;
}

static uint64_t value_of(const tt_search *s, uint32_t i, uint32_t count) {
  uint64_t value = 0;
  for (uint32_t k = 0; k < count; k++) {
    value += s->q[s->first[i] + k];
  }
  return value;
}

void tt_search_all(tt_search *s) {
  uint64_t *const rest = s->score;  /* potential of the candidates from i on */
  uint32_t *const tried = s->price; /* of candidate i: the next count is tried - 1 */
  uint16_t *const counts = s->trial;
  uint64_t best = tt_search_value(s, s->best);
  uint64_t value = 0;
  uint32_t i = 0;
  rest[s->count] = 0;
  for (uint32_t c = s->count; c-- > 0;) {
    rest[c] = rest[c + 1] + s->potential[c];
    tried[c] = (uint32_t)s->usable[c] + 1;
    counts[c] = 0;
  }
  for (;;) {
    const int cut = value + rest[i] <= best;
    if (i == s->count && !cut) {
      memcpy(s->best, counts, s->count * sizeof *counts);
      best = value;
    }
    if (i == s->count || cut || tried[i] == 0) {
      if (i < s->count) {
        tried[i] = (uint32_t)s->usable[i] + 1;
        counts[i] = 0;
      }
      if (i == 0) {
        return;
      }
      i--;
      value -= value_of(s, i, counts[i]);
      continue;
    }
    counts[i] = (uint16_t)--tried[i];
    if (counts[i] == 0 || tt_search_feasible(s, counts)) {
      value += value_of(s, i, counts[i]);
      i++;
    }
  }
}
