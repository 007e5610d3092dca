/* The most potential under both budgets. The earliest trained layer pays for the chain of input
 * gradients behind it and for the activations of its depth.
 *
 * 1. Incumbents: the empty plan, and the greedy plans of the paper's criterion for four shares of
 *    channels, without channels of no potential, topped up.
 * 2. For each candidate d from the last to the first as the earliest trained layer: start from one
 *    channel of d, propose counts within what is left (tt_knapsack.c); where the real cost is more,
 *    propose again with the overhead that was seen, up to 4 times, then give channels back. Top up.
 * 3. Improve the incumbent, up to 8 rounds: take 1, 2 or 4 channels from a layer and fill the
 *    others.
 *
 * A plan replaces the incumbent only if it captures strictly more, and only after its real cost was
 * checked. So a depth whose layers hold no more potential than the incumbent is left out. */
#include "tt_search.h"

#include <string.h>

#define PROPOSALS 4
#define ROUNDS 8

static void copy(const tt_search *s, uint16_t *to, const uint16_t *from) {
  memcpy(to, from, s->count * sizeof *to);
}

/* Fills the layers in play by the prices for both budgets alike. Returns whether the plan in
 * `trial` keeps the budgets. */
static int fill_trial(tt_search *s, const uint16_t *counts, tt_room room) {
  uint64_t gain = 0;
  tt_search_shares(s, room);
  tt_search_prices(s, TT_SEARCH_EVEN);
  copy(s, s->trial, counts);
  tt_search_fill(s, s->trial, room, &gain);
  return tt_search_feasible(s, s->trial);
}

/* Spends what `plan` leaves: on all layers behind the earliest, or else on the trained ones. */
static void top_up(tt_search *s) {
  tt_room room;
  const uint32_t earliest = tt_search_earliest(s, s->plan);
  if (earliest == s->count) {
    return;
  }
  tt_search_room(s, s->plan, &room);
  tt_search_play_from(s, earliest);
  if (!fill_trial(s, s->plan, room)) {
    tt_search_play_trained(s, s->plan);
    if (!fill_trial(s, s->plan, room)) {
      return;
    }
  }
  copy(s, s->plan, s->trial);
}

static void keep_better(tt_search *s, uint64_t *best) {
  const uint64_t value = tt_search_value(s, s->plan);
  if (value > *best) {
    copy(s, s->best, s->plan);
    *best = value;
  }
}

/* What counts cost beyond their channels, where that is more than before. */
static void raise_overhead(const tt_search *s, const uint16_t *counts, tt_room *overhead) {
  int64_t bytes = (int64_t)tt_search_memory(s, counts);
  int64_t macs = (int64_t)tt_search_macs(s, counts);
  for (uint32_t i = 0; i < s->count; i++) {
    bytes -= (int64_t)counts[i] * s->candidates[i].channel_bytes;
    macs -= (int64_t)counts[i] * s->candidates[i].channel_macs;
  }
  overhead->bytes = bytes > overhead->bytes ? bytes : overhead->bytes;
  overhead->macs = macs > overhead->macs ? macs : overhead->macs;
}

/* Gives channels of `kept` back, the least potential per price first, ties to the larger layer,
 * until both budgets hold. One channel of `depth` stays. */
static void drop(tt_search *s, uint32_t depth) {
  tt_room room;
  tt_search_room(s, s->kept, &room);
  while (room.bytes < 0 || room.macs < 0) {
    while (room.bytes < 0 || room.macs < 0) {
      uint32_t least = s->count;
      uint32_t least_q = 0;
      for (uint32_t i = depth; i < s->count; i++) {
        if (s->kept[i] <= (i == depth)) {
          continue;
        }
        const uint32_t q = s->q[s->first[i] + s->kept[i] - 1u];
        if (least == s->count || (uint64_t)q * s->price[least] <= (uint64_t)least_q * s->price[i]) {
          least = i;
          least_q = q;
        }
      }
      if (least == s->count) {
        return;
      }
      s->kept[least]--;
      room.bytes += s->candidates[least].channel_bytes;
      room.macs += s->candidates[least].channel_macs;
    }
    tt_search_room(s, s->kept, &room);
  }
}

/* Extends `plan`, which is one channel of `depth`. */
static void extend(tt_search *s, uint32_t depth) {
  tt_room overhead = {0, 0};
  raise_overhead(s, s->plan, &overhead);
  for (int round = 0; round < PROPOSALS; round++) {
    const tt_candidate *const first = &s->candidates[depth];
    tt_room room;
    room.bytes = s->memory_limit - overhead.bytes - first->channel_bytes;
    room.macs = s->macs_limit - overhead.macs - first->channel_macs;
    if (room.bytes < 0 || room.macs < 0) {
      return;
    }
    tt_search_propose(s, depth, room);
    if (tt_search_feasible(s, s->kept)) {
      copy(s, s->plan, s->kept);
      return;
    }
    raise_overhead(s, s->kept, &overhead);
  }
  drop(s, depth);
  copy(s, s->plan, s->kept);
}

static void try_depth(tt_search *s, uint32_t depth, uint64_t *best) {
  memset(s->plan, 0, s->count * sizeof *s->plan);
  s->plan[depth] = 1;
  if (s->usable[depth] != 0 && tt_search_feasible(s, s->plan)) {
    extend(s, depth);
    top_up(s);
    keep_better(s, best);
  }
}

/* Whether filling the layers in play could capture more than `loss`.
 *
 * In units of the room, a channel of layer j takes raw_j = a * bytes + (64 - a) * MACs and all
 * together at most 64, for every a. So the gain is at most 64 times the largest q / raw of a
 * channel that is next in its layer and has room alone. Shares are rounded down, which errs on the
 * safe side. */
static int may_gain(const tt_search *s, tt_room room, uint64_t loss) {
  static const uint8_t directions[] = {32, 16, 48, 8, 56, 0, 64};
  for (uint32_t d = 0; d < sizeof directions; d++) {
    int better = 0;
    for (uint32_t p = 0; p < s->plays && !better; p++) {
      const uint32_t i = s->play[p];
      const uint64_t raw =
          directions[d] * s->byte_share[i] + (64u - directions[d]) * s->mac_share[i];
      better = s->plan[i] < s->usable[i] && s->candidates[i].channel_bytes <= room.bytes &&
               s->candidates[i].channel_macs <= room.macs &&
               (uint64_t)s->q[s->first[i] + s->plan[i]] << 26 > loss * raw;
    }
    if (!better) {
      return 0;
    }
  }
  return 1;
}

/* Takes channels from candidate i of the incumbent and fills the others. Returns whether that is a
 * better plan, which is the incumbent then. */
static int exchange(tt_search *s, uint32_t i, uint32_t removed) {
  const uint32_t earliest = tt_search_earliest(s, s->best);
  tt_room room;
  uint64_t loss = 0;
  if (s->best[i] < removed + (i == earliest)) {
    return 0;
  }
  copy(s, s->plan, s->best);
  s->plan[i] = (uint16_t)(s->plan[i] - removed);
  for (uint32_t k = 0; k < removed; k++) {
    loss += s->q[s->first[i] + s->plan[i] + k];
  }
  tt_search_room(s, s->best, &room);
  room.bytes += (int64_t)removed * s->candidates[i].channel_bytes;
  room.macs += (int64_t)removed * s->candidates[i].channel_macs;
  tt_search_play_without(s, earliest, i);
  tt_search_shares(s, room);
  if (!may_gain(s, room, loss)) {
    return 0;
  }
  tt_search_prices(s, TT_SEARCH_EVEN);
  for (int even = 0; even < 2; even++) {
    uint64_t gain = 0;
    if (even) {
      tt_search_even_prices(s);
    }
    copy(s, s->trial, s->plan);
    tt_search_fill(s, s->trial, room, &gain);
    if (gain > loss && tt_search_feasible(s, s->trial)) {
      copy(s, s->best, s->trial);
      return 1;
    }
  }
  return 0;
}

static void improve(tt_search *s) {
  const uint32_t earliest = tt_search_earliest(s, s->best);
  int better = 1;
  for (int round = 0; round < ROUNDS && better; round++) {
    better = 0;
    for (uint32_t i = earliest; i < s->count; i++) {
      for (uint32_t removed = 1; removed <= 4; removed *= 2) {
        better |= exchange(s, i, removed);
      }
    }
  }
}

void tt_search_exact(tt_search *s, uint32_t ranked, uint32_t numerator, uint32_t denominator) {
  uint64_t best = 0;
  uint64_t behind = 0; /* potential of the layers from a depth on */
  for (uint32_t share = 0; share < 4; share++) {
    const uint32_t above = share != 0 ? 1 : numerator;
    const uint32_t below = share != 0 ? 1u << share : denominator;
    tt_search_take(s, ranked, above, below, TT_SELECT_SKIP, s->plan);
    for (uint32_t i = 0; i < s->count; i++) {
      s->plan[i] = s->plan[i] < s->usable[i] ? s->plan[i] : s->usable[i];
    }
    top_up(s);
    keep_better(s, &best);
  }
  for (uint32_t depth = s->count; depth-- > 0;) {
    behind += s->potential[depth];
    if (behind > best) {
      try_depth(s, depth, &best);
    }
  }
  improve(s);
}
