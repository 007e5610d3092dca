/* Answers selection problems from stdin on stdout until stdin ends: a process of its own, so that
 * the sanitizers can watch. Every array is allocated with exactly the bytes that it may have.
 *
 * Request, little-endian: the words of `request`, then candidates, activation bytes, links (mask
 * low, mask high, MACs), potentials, all in words. Reply: status, then 4 x 64 bits of the result,
 * proven, whether bit map and result were written, bytes of the bit map, the bit map. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tt_select.h"

enum {
  CANDIDATES,
  LINKS,
  CRITERION,
  OVERFLOW_RULE,
  NUMERATOR,
  DENOMINATOR,
  MEMORY,
  MACS_LOW,
  MACS_HIGH,
  SEED_LOW,
  SEED_HIGH,
  EXHAUSTIVE,
  MISSING_SCRATCH, /* bytes that the scratch has too few */
  SKEW,            /* bytes that the scratch is moved away from its alignment */
  POTENTIALS,      /* how many follow */
  WORDS
};

static void need(void *to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) {
    exit(3);
  }
}

static void say(const void *from, size_t bytes) { fwrite(from, 1, bytes, stdout); }

static void *exactly(size_t bytes) {
  void *const found = malloc(bytes);
  if (found == NULL) {
    exit(4);
  }
  return found;
}

static uint64_t wide(uint32_t low, uint32_t high) { return (uint64_t)high << 32 | low; }

static int is_filled(const uint8_t *bytes, size_t size) {
  for (size_t i = 0; i < size; i++) {
    if (bytes[i] != 0xa5) {
      return 0;
    }
  }
  return 1;
}

static void answer(const uint32_t *r) {
  const uint32_t n = r[CANDIDATES];
  tt_candidate *const candidates = exactly(n * sizeof *candidates);
  uint32_t *const activation = exactly((n + 1) * sizeof *activation);
  tt_chain_link *const links = exactly(r[LINKS] * sizeof *links);
  float *const potentials = exactly(r[POTENTIALS] * sizeof *potentials);
  uint32_t channels = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t w[6];
    need(w, sizeof w);
    const tt_candidate c = {(uint16_t)w[0], (uint16_t)w[1], w[2], w[3], w[4], w[5]};
    candidates[i] = c;
    channels += w[1];
  }
  need(activation, (n + 1) * sizeof *activation);
  for (uint32_t i = 0; i < r[LINKS]; i++) {
    uint32_t w[3];
    need(w, sizeof w);
    links[i].needed = wide(w[0], w[1]);
    links[i].macs = w[2];
  }
  need(potentials, r[POTENTIALS] * sizeof *potentials);

  const tt_select_problem problem = {n, candidates, activation, r[LINKS], links};
  const tt_select_options options = {(uint8_t)r[CRITERION],
                                     (uint8_t)r[OVERFLOW_RULE],
                                     (uint16_t)r[NUMERATOR],
                                     (uint16_t)r[DENOMINATOR],
                                     r[MEMORY],
                                     wide(r[MACS_LOW], r[MACS_HIGH]),
                                     wide(r[SEED_LOW], r[SEED_HIGH]),
                                     r[EXHAUSTIVE]};
  const size_t scratch_bytes = tt_select_scratch_bytes(&problem) - r[MISSING_SCRATCH];
  uint8_t *const scratch = exactly(scratch_bytes + r[SKEW]);
  const uint32_t bitmap_bytes = (channels + 7) / 8;
  uint8_t *const bitmap = exactly(bitmap_bytes);
  tt_select_result result;
  memset(scratch, 0xa5, scratch_bytes + r[SKEW]);
  memset(bitmap, 0xa5, bitmap_bytes);
  memset(&result, 0xa5, sizeof result);
  const int32_t status = tt_select(&problem, &options, r[POTENTIALS] != 0 ? potentials : NULL,
                                   scratch + r[SKEW], scratch_bytes, bitmap, &result);
  const uint64_t memory = result.memory_bytes;
  const uint32_t proven = result.proven;
  const uint32_t untouched =
      is_filled(bitmap, bitmap_bytes) && is_filled((const uint8_t *)&result, sizeof result);
  say(&status, sizeof status);
  say(&result.captured, 8);
  say(&result.available, 8);
  say(&memory, 8);
  say(&result.macs, 8);
  say(&proven, 4);
  say(&untouched, 4);
  say(&bitmap_bytes, 4);
  say(bitmap, bitmap_bytes);
  fflush(stdout);
  free(bitmap);
  free(scratch);
  free(potentials);
  free(links);
  free(activation);
  free(candidates);
}

int main(void) {
  uint32_t request[WORDS];
  while (fread(request, sizeof request, 1, stdin) == 1) {
    answer(request);
  }
  return 0;
}
