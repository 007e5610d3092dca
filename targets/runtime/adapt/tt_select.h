/* Selection on the device: which output channels of which candidate layers are trained.
 *
 * Fisher potentials and budgets in, a bit map of channels out. The answer is the one of
 * tvm_tinytrain.selection on the host for the same tables, bit for bit: integers decide, ties go to
 * the smaller layer and then to the smaller channel. Nothing is allocated; the caller lends
 * scratch.
 *
 * What a plan of k_i channels of each candidate costs:
 *   bytes  activation_bytes[earliest candidate with k_i > 0] + sum of k_i * channel_bytes_i
 *   MACs   sum of the links that a selected candidate needs   + sum of k_i * channel_macs_i */
#ifndef TT_SELECT_H
#define TT_SELECT_H

#include "tinytrain.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TT_SELECT_MAX_CANDIDATES 64
#define TT_SELECT_EXHAUSTIVE_LIMIT 16384u /* what the host uses */
#define TT_SELECT_NO_MEMORY_LIMIT UINT32_MAX
#define TT_SELECT_NO_MACS_LIMIT UINT64_MAX

/* Scratch of tt_select for so many candidates with so many channels in all; any alignment. */
#define TT_SELECT_SCRATCH_BYTES(candidates, channels) (6 * (channels) + 51 * (candidates) + 16)

typedef enum {
  TT_SELECT_TINYTRAIN = 0,      /* P / (weights * forward MACs), the paper's */
  TT_SELECT_FISHER = 1,         /* P */
  TT_SELECT_FISHER_MEMORY = 2,  /* P / weights */
  TT_SELECT_FISHER_COMPUTE = 3, /* P / forward MACs */
  TT_SELECT_L2 = 4,             /* P; the potentials are squared norms of the channels' weights */
  TT_SELECT_RANDOM = 5,         /* draws from the seed; no potentials */
  TT_SELECT_EXACT = 6           /* the most potential under both budgets */
} tt_select_criterion;

/* At a layer that does not fit: go on with the next one, or end. */
typedef enum {
  TT_SELECT_SKIP = 0,
  TT_SELECT_STOP = 1
} tt_select_overflow;

/* A layer that may be trained; candidates stand in ascending order of `layer`. */
typedef struct {
  uint16_t layer;
  uint16_t channels; /* of the output, at least 1 */
  uint32_t weights;
  uint32_t forward_macs;
  uint32_t channel_bytes; /* what one trained channel adds */
  uint32_t channel_macs;
} tt_candidate;

/* A part of the backward pass that runs when (selected & needed) != 0; bit i is candidate i. */
typedef struct {
  uint64_t needed;
  uint32_t macs;
} tt_chain_link;

typedef struct {
  uint32_t num_candidates; /* at most TT_SELECT_MAX_CANDIDATES */
  const tt_candidate *candidates;
  const uint32_t *activation_bytes; /* [num_candidates + 1] by earliest candidate, the last: none */
  uint32_t num_links;
  const tt_chain_link *links;
} tt_select_problem;

typedef struct {
  uint8_t criterion;          /* tt_select_criterion */
  uint8_t overflow;           /* tt_select_overflow; not for TT_SELECT_EXACT */
  uint16_t ratio_numerator;   /* share of a layer's channels that is trained, in (0, 1] */
  uint16_t ratio_denominator; /* in lowest terms or not */
  uint32_t memory_bytes;      /* budgets */
  uint64_t macs;
  uint64_t seed;             /* of TT_SELECT_RANDOM */
  uint32_t exhaustive_limit; /* TT_SELECT_EXACT: most vectors of counts that are all searched */
} tt_select_options;

typedef struct {
  uint64_t captured;  /* summed quantised potential of the selected channels */
  uint64_t available; /* and of all channels */
  uint64_t macs;
  uint32_t memory_bytes; /* at most UINT32_MAX is said */
  uint8_t proven;        /* no plan within the budgets captures more */
} tt_select_result;

/* TT_SELECT_SCRATCH_BYTES of the problem. */
size_t tt_select_scratch_bytes(const tt_select_problem *problem);

/* Selects channels.
 *
 * potentials: float32 >= 0 of all channels, candidate by candidate; NULL for TT_SELECT_RANDOM.
 * bitmap: bit c, low bits first, is channel c of that concatenation; (channels + 7) / 8 bytes.
 *
 * Returns TT_OK, also where no channel fits (the bit map is empty then), or
 *   TT_ERR_BAD_VALUE    a potential is negative, infinite or not a number; an option or the number
 *                       of candidates is out of its range
 *   TT_ERR_ARENA_SMALL  scratch_bytes is less than tt_select_scratch_bytes
 *   TT_ERR_BUDGET       not even the frozen network fits into memory_bytes
 * and has then written neither bitmap nor result. */
int tt_select(const tt_select_problem *problem, const tt_select_options *options,
              const float *potentials, void *scratch, size_t scratch_bytes, uint8_t *bitmap,
              tt_select_result *result);

#ifdef __cplusplus
}
#endif

#endif /* TT_SELECT_H */
