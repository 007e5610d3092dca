#include "tt_search.h"

#include <string.h>

static uint32_t total_channels(const tt_select_problem *problem) {
  uint32_t total = 0;
  for (uint32_t i = 0; i < problem->num_candidates; i++) {
    total += problem->candidates[i].channels;
  }
  return total;
}

size_t tt_select_scratch_bytes(const tt_select_problem *problem) {
  return TT_SELECT_SCRATCH_BYTES((size_t)problem->num_candidates, (size_t)total_channels(problem));
}

static void *carve(unsigned char **at, size_t bytes) {
  void *const here = *at;
  *at += bytes;
  return here;
}

/* Lays the arrays out in the scratch, widest elements first. */
static void lay_out(tt_search *s, void *scratch) {
  const size_t n = s->count;
  unsigned char *at = (unsigned char *)scratch;
  at += (8 - ((uintptr_t)at & 7)) & 7;
  s->potential = carve(&at, n * sizeof(uint64_t));
  s->score = carve(&at, (n + 1) * sizeof(uint64_t));
  s->first = carve(&at, n * sizeof(uint32_t));
  s->price = carve(&at, n * sizeof(uint32_t));
  s->byte_share = carve(&at, n * sizeof(uint32_t));
  s->mac_share = carve(&at, n * sizeof(uint32_t));
  s->q = carve(&at, s->channels * sizeof(uint32_t));
  s->order = carve(&at, s->channels * sizeof(uint16_t));
  s->usable = carve(&at, n * sizeof(uint16_t));
  s->best = carve(&at, n * sizeof(uint16_t));
  s->plan = carve(&at, n * sizeof(uint16_t));
  s->kept = carve(&at, n * sizeof(uint16_t));
  s->trial = carve(&at, n * sizeof(uint16_t));
  s->low = carve(&at, n * sizeof(uint16_t));
  s->high = carve(&at, n * sizeof(uint16_t));
  s->cut = carve(&at, n * sizeof(uint16_t));
  s->ranking = carve(&at, n);
  s->play = carve(&at, n);
  s->active = carve(&at, n);
}

static int options_are_valid(const tt_select_options *options, const float *potentials) {
  return options->criterion <= TT_SELECT_EXACT && options->overflow <= TT_SELECT_STOP &&
         options->ratio_numerator != 0 && options->ratio_numerator <= options->ratio_denominator &&
         (potentials != NULL || options->criterion == TT_SELECT_RANDOM);
}

static void write_bitmap(const tt_search *s, uint8_t *bitmap) {
  memset(bitmap, 0, (s->channels + 7) / 8);
  for (uint32_t i = 0; i < s->count; i++) {
    for (uint32_t k = 0; k < s->best[i]; k++) {
      const uint32_t bit = s->first[i] + s->order[s->first[i] + k];
      bitmap[bit >> 3] = (uint8_t)(bitmap[bit >> 3] | 1u << (bit & 7));
    }
  }
}

int tt_select(const tt_select_problem *problem, const tt_select_options *options,
              const float *potentials, void *scratch, size_t scratch_bytes, uint8_t *bitmap,
              tt_select_result *result) {
  tt_search s;
  if (problem->num_candidates > TT_SELECT_MAX_CANDIDATES ||
      !options_are_valid(options, potentials)) {
    return TT_ERR_BAD_VALUE;
  }
  if (scratch == NULL || scratch_bytes < tt_select_scratch_bytes(problem)) {
    return TT_ERR_ARENA_SMALL;
  }
  memset(&s, 0, sizeof s);
  s.problem = problem;
  s.candidates = problem->candidates;
  s.count = problem->num_candidates;
  s.channels = total_channels(problem);
  const int bounded = options->memory_bytes != TT_SELECT_NO_MEMORY_LIMIT;
  s.memory_limit = bounded ? (int64_t)options->memory_bytes : TT_SEARCH_UNLIMITED;
  s.macs_limit = TT_SEARCH_UNLIMITED;
  if (options->macs < (uint64_t)TT_SEARCH_UNLIMITED) {
    s.macs_limit = (int64_t)options->macs;
  }
  lay_out(&s, scratch);
  if (options->criterion == TT_SELECT_RANDOM) {
    tt_search_draw(&s, options->seed);
  } else if (tt_search_quantise(&s, potentials) != TT_OK) {
    return TT_ERR_BAD_VALUE;
  }
  if ((int64_t)problem->activation_bytes[s.count] > s.memory_limit) {
    return TT_ERR_BUDGET;
  }

  int proven = 0;
  const uint32_t ranked = tt_search_rank(&s, options->criterion);
  memset(s.best, 0, s.count * sizeof *s.best);
  if (options->criterion == TT_SELECT_EXACT) {
    tt_search_exact(&s, ranked, options->ratio_numerator, options->ratio_denominator);
    proven = tt_search_is_small(&s, options->exhaustive_limit);
    if (proven) {
      tt_search_all(&s);
    }
  } else {
    tt_search_take(&s, ranked, options->ratio_numerator, options->ratio_denominator,
                   options->overflow, s.best);
  }

  const uint64_t memory = tt_search_memory(&s, s.best);
  write_bitmap(&s, bitmap);
  result->captured = tt_search_value(&s, s.best);
  result->available = 0;
  for (uint32_t i = 0; i < s.count; i++) {
    result->available += s.potential[i];
  }
  result->macs = tt_search_macs(&s, s.best);
  result->memory_bytes = memory < UINT32_MAX ? (uint32_t)memory : UINT32_MAX;
  result->proven = (uint8_t)proven;
  return TT_OK;
}
