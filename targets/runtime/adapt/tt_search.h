/* What the files of the selection share; callers need tt_select.h only.
 *
 * A plan is one count for each candidate: its channels of largest potential. */
#ifndef TT_SEARCH_H
#define TT_SEARCH_H

#include "tt_select.h"

#define TT_SEARCH_UNLIMITED ((int64_t)1 << 62)
#define TT_SEARCH_EVEN 32 /* the direction in which both budgets weigh the same */

/* Bytes and MACs that are left; negative where a budget is broken. */
typedef struct {
  int64_t bytes;
  int64_t macs;
} tt_room;

/* The state of one search; all arrays lie in the caller's scratch. */
typedef struct {
  const tt_select_problem *problem;
  const tt_candidate *candidates;
  uint32_t count;
  uint32_t channels; /* of all candidates */
  uint32_t plays;    /* layers in `play` */
  int64_t memory_limit;
  int64_t macs_limit;
  uint64_t *potential; /* [count] P, the sum of q */
  uint64_t *score;     /* [count + 1] numerators of the ranking; later: potential not yet decided */
  uint32_t *first;     /* [count] where the channels of a candidate begin */
  uint32_t *price;     /* [count] 1 .. 65535 */
  uint32_t *byte_share; /* [count] of the room that a channel takes, in 2^-20 */
  uint32_t *mac_share;
  uint32_t *q;      /* [channels] quantised potentials, of each candidate in descending order */
  uint16_t *order;  /* [channels] the channel behind each of them */
  uint16_t *usable; /* [count] channels with q > 0 */
  uint16_t *best;   /* [count] counts: the incumbent */
  uint16_t *plan;   /* counts: the plan under construction */
  uint16_t *kept;   /* counts: the best proposal for it */
  uint16_t *trial;  /* counts: what is being tried */
  uint16_t *low;    /* counts: a prefix of the merged channels that fits */
  uint16_t *high;   /* counts: no fitting prefix is longer */
  uint16_t *cut;    /* counts: a prefix between the two */
  uint8_t *ranking; /* [count] candidates by descending score */
  uint8_t *play;    /* [count] layers in play, ascending */
  uint8_t *active;  /* [count] those of them that are not closed */
} tt_search;

/* tt_quantise.c: potentials to sorted integers. tt_search_quantise returns TT_ERR_BAD_VALUE for a
 * potential that is negative, infinite or not a number. */
int tt_search_quantise(tt_search *s, const float *potentials);
void tt_search_draw(tt_search *s, uint64_t seed);

/* tt_costs.c */
uint32_t tt_search_earliest(const tt_search *s, const uint16_t *counts);
uint64_t tt_search_memory(const tt_search *s, const uint16_t *counts);
uint64_t tt_search_macs(const tt_search *s, const uint16_t *counts);
uint64_t tt_search_value(const tt_search *s, const uint16_t *counts);
/* What a plan leaves of the budgets; returns whether it keeps both. */
int tt_search_room(const tt_search *s, const uint16_t *counts, tt_room *room);
int tt_search_feasible(const tt_search *s, const uint16_t *counts);

/* tt_greedy.c: writes `ranking` and returns its length; takes layers in its order. */
uint32_t tt_search_rank(tt_search *s, uint8_t criterion);
void tt_search_take(const tt_search *s, uint32_t ranked, uint32_t numerator, uint32_t denominator,
                    uint8_t overflow, uint16_t *counts);

/* tt_knapsack.c: layers in play, their prices, and channels by potential per price. */
void tt_search_play_from(tt_search *s, uint32_t begin);
void tt_search_play_trained(tt_search *s, const uint16_t *counts);
void tt_search_play_without(tt_search *s, uint32_t begin, uint32_t barred);
void tt_search_shares(tt_search *s, tt_room room);
void tt_search_prices(tt_search *s, uint32_t direction);
void tt_search_even_prices(tt_search *s);
int tt_search_fill(tt_search *s, uint16_t *counts, tt_room room, uint64_t *gain);
void tt_search_propose(tt_search *s, uint32_t depth, tt_room room);

/* tt_exact.c, tt_exhaustive.c: the incumbent is improved in place. */
void tt_search_exact(tt_search *s, uint32_t ranked, uint32_t numerator, uint32_t denominator);
int tt_search_is_small(const tt_search *s, uint32_t limit);
void tt_search_all(tt_search *s);

#endif /* TT_SEARCH_H */
