/* Channels by potential per price within two budgets, at a fixed depth.
 *
 * All channels of a layer cost the same, so within a layer they are taken in order of potential; a
 * layer whose next channel has no room is closed. With a direction a in 0 (compute alone) .. 64
 * (memory alone)
 *
 *   raw_i = a * min(2^20, bytes_i * 2^20 / room) + (64 - a) * min(2^20, macs_i * 2^20 / room)
 *   w_i   = max(1, raw_i * 65535 / max(1, max raw))
 *
 * channels are taken by descending q / w, compared as q * w' > q' * w; ties to the smaller layer.
 *
 * 1. Merged by q / w, the layers' channels are one sequence. Its longest prefix that fits is
 *    bracketed by bisection: the middle of the widest bracket is a pivot, the channels above it are
 *    counted in each layer by binary search, and what they cost says which side goes on.
 * 2. What is left is taken one by one, until a channel has no room.
 * 3. Then every layer without room is closed, and it starts again with the others. */
#include "tt_search.h"

#include <string.h>

#define STEPS 64u
#define SCALE ((uint32_t)1 << 20)
#define LARGEST_PRICE 65535u
#define ONE_BY_ONE 8u /* fewer channels than this are not worth a bisection */

void tt_search_play_from(tt_search *s, uint32_t begin) {
  s->plays = 0;
  for (uint32_t i = begin; i < s->count; i++) {
    s->play[s->plays++] = (uint8_t)i;
  }
}

void tt_search_play_trained(tt_search *s, const uint16_t *counts) {
  s->plays = 0;
  for (uint32_t i = 0; i < s->count; i++) {
    if (counts[i] != 0) {
      s->play[s->plays++] = (uint8_t)i;
    }
  }
}

void tt_search_play_without(tt_search *s, uint32_t begin, uint32_t barred) {
  s->plays = 0;
  for (uint32_t i = begin; i < s->count; i++) {
    if (i != barred) {
      s->play[s->plays++] = (uint8_t)i;
    }
  }
}

static uint32_t share_of(uint32_t cost, int64_t room) {
  const uint64_t limit = room > 1 ? (uint64_t)room : 1;
  return cost >= limit ? SCALE : (uint32_t)(((uint64_t)cost << 20) / limit);
}

void tt_search_shares(tt_search *s, tt_room room) {
  for (uint32_t p = 0; p < s->plays; p++) {
    const uint32_t i = s->play[p];
    s->byte_share[i] = share_of(s->candidates[i].channel_bytes, room.bytes);
    s->mac_share[i] = share_of(s->candidates[i].channel_macs, room.macs);
  }
}

void tt_search_prices(tt_search *s, uint32_t direction) {
  uint32_t largest = 1;
  for (uint32_t p = 0; p < s->plays; p++) {
    const uint32_t i = s->play[p];
    s->price[i] = direction * s->byte_share[i] + (STEPS - direction) * s->mac_share[i];
    largest = s->price[i] > largest ? s->price[i] : largest;
  }
  for (uint32_t p = 0; p < s->plays; p++) {
    const uint32_t i = s->play[p];
    const uint32_t price = (uint32_t)((uint64_t)s->price[i] * LARGEST_PRICE / largest);
    s->price[i] = price != 0 ? price : 1;
  }
}

void tt_search_even_prices(tt_search *s) {
  for (uint32_t p = 0; p < s->plays; p++) {
    s->price[s->play[p]] = 1;
  }
}

/* How many channels of this cost there is room for, at most `most`. */
static uint32_t room_for(int64_t room, uint32_t cost, uint32_t most) {
  if ((uint64_t)cost * most <= (uint64_t)room) {
    return most;
  }
  return (uint32_t)((uint64_t)room / cost);
}

/* Counts the channels above a pivot into `cut`; returns whether there is room for all of them. */
static int count_above(tt_search *s, const uint16_t *counts, uint32_t active, tt_room room,
                       uint32_t pivot_q, uint32_t pivot_price) {
  int fits = 1;
  for (uint32_t p = 0; p < active; p++) {
    const uint32_t i = s->active[p];
    const uint32_t *const q = s->q + s->first[i];
    const uint64_t limit = (uint64_t)pivot_q * s->price[i];
    uint32_t from = s->low[i];
    uint32_t to = s->high[i];
    while (from < to) {
      const uint32_t middle = (from + to) / 2;
      if ((uint64_t)q[middle] * pivot_price > limit) {
        from = middle + 1;
      } else {
        to = middle;
      }
    }
    s->cut[i] = (uint16_t)from;
    /* Where the bracket ends although the next channel is above the pivot too, more than fits is
     * above it. */
    fits &= from < s->high[i] || from == s->usable[i] || (uint64_t)q[from] * pivot_price <= limit;
    room.bytes -= (int64_t)(from - counts[i]) * s->candidates[i].channel_bytes;
    room.macs -= (int64_t)(from - counts[i]) * s->candidates[i].channel_macs;
  }
  return fits && room.bytes >= 0 && room.macs >= 0;
}

/* Takes a prefix of the merged channels, all of it or nearly so. */
static void take_prefix(tt_search *s, uint16_t *counts, uint32_t active, tt_room *room,
                        uint64_t *gain) {
  for (uint32_t p = 0; p < active; p++) {
    const uint32_t i = s->active[p];
    uint32_t most = (uint32_t)s->usable[i] - counts[i];
    most = room_for(room->bytes, s->candidates[i].channel_bytes, most);
    most = room_for(room->macs, s->candidates[i].channel_macs, most);
    s->low[i] = counts[i];
    s->high[i] = (uint16_t)(counts[i] + most);
  }
  for (int narrower = 1; narrower;) {
    uint32_t width = 0;
    uint32_t widest = 0;
    uint32_t total = 0;
    for (uint32_t p = 0; p < active; p++) {
      const uint32_t i = s->active[p];
      const uint32_t own = (uint32_t)s->high[i] - s->low[i];
      total += own;
      if (own > width) {
        width = own;
        widest = i;
      }
    }
    if (total <= ONE_BY_ONE) {
      break;
    }
    const uint32_t pivot_q = s->q[s->first[widest] + s->low[widest] + width / 2];
    const int fits = count_above(s, counts, active, *room, pivot_q, s->price[widest]);
    uint16_t *const side = fits ? s->low : s->high;
    narrower = 0;
    for (uint32_t p = 0; p < active; p++) {
      const uint32_t i = s->active[p];
      narrower |= side[i] != s->cut[i];
      side[i] = s->cut[i];
    }
  }
  for (uint32_t p = 0; p < active; p++) {
    const uint32_t i = s->active[p];
    const uint32_t *const q = s->q + s->first[i];
    const uint32_t taken = (uint32_t)s->low[i] - counts[i];
    for (uint32_t k = counts[i]; k < s->low[i]; k++) {
      *gain += q[k];
    }
    room->bytes -= (int64_t)taken * s->candidates[i].channel_bytes;
    room->macs -= (int64_t)taken * s->candidates[i].channel_macs;
    counts[i] = s->low[i];
  }
}

/* Position in `active` of the layer whose next channel has the most potential per price. */
static uint32_t densest(const tt_search *s, const uint16_t *counts, uint32_t active) {
  uint32_t best = 0;
  uint32_t best_q = s->q[s->first[s->active[0]] + counts[s->active[0]]];
  uint32_t best_price = s->price[s->active[0]];
  for (uint32_t p = 1; p < active; p++) {
    const uint32_t i = s->active[p];
    const uint32_t q = s->q[s->first[i] + counts[i]];
    if ((uint64_t)q * best_price > (uint64_t)best_q * s->price[i]) {
      best = p;
      best_q = q;
      best_price = s->price[i];
    }
  }
  return best;
}

static int has_room(const tt_search *s, uint32_t i, tt_room room) {
  return s->candidates[i].channel_bytes <= room.bytes && s->candidates[i].channel_macs <= room.macs;
}

/* Keeps the layers that have a channel left and, if asked, room for it. */
static uint32_t keep_open(tt_search *s, const uint16_t *counts, uint32_t active,
                          const tt_room *room) {
  uint32_t kept = 0;
  for (uint32_t p = 0; p < active; p++) {
    const uint32_t i = s->active[p];
    if (counts[i] < s->usable[i] && (room == NULL || has_room(s, i, *room))) {
      s->active[kept++] = (uint8_t)i;
    }
  }
  return kept;
}

/* Adds channels of the layers in play to `counts` while there is room, and their q to `gain`.
 * Returns what closed the first layer: 1 memory, -1 compute, 0 nothing. */
int tt_search_fill(tt_search *s, uint16_t *counts, tt_room room, uint64_t *gain) {
  int shortage = 0;
  memcpy(s->active, s->play, s->plays);
  uint32_t active = keep_open(s, counts, s->plays, NULL);
  while (active != 0) {
    take_prefix(s, counts, active, &room, gain);
    active = keep_open(s, counts, active, NULL);
    while (active != 0) {
      const uint32_t i = s->active[densest(s, counts, active)];
      if (!has_room(s, i, room)) {
        /* Room only shrinks: what has none now can be closed at once. */
        shortage = shortage != 0 ? shortage : s->candidates[i].channel_bytes > room.bytes ? 1 : -1;
        active = keep_open(s, counts, active, &room);
        break;
      }
      *gain += s->q[s->first[i] + counts[i]];
      room.bytes -= s->candidates[i].channel_bytes;
      room.macs -= s->candidates[i].channel_macs;
      if (++counts[i] == s->usable[i]) {
        active = keep_open(s, counts, active, NULL);
      }
    }
  }
  return shortage;
}

/* Fills `plan` at one direction into `trial`; what captures more replaces `kept`. */
static int attempt(tt_search *s, tt_room room, uint32_t direction, uint64_t *best,
                   uint32_t *best_direction) {
  uint64_t gain = 0;
  tt_search_prices(s, direction);
  memcpy(s->trial, s->plan, s->count * sizeof *s->trial);
  const int shortage = tt_search_fill(s, s->trial, room, &gain);
  if (*best_direction > STEPS || gain > *best) {
    memcpy(s->kept, s->trial, s->count * sizeof *s->kept);
    *best = gain;
    *best_direction = direction;
  }
  return shortage;
}

/* Adds channels of the layers from `depth` on to `plan`, into `kept`, for the best of some
 * directions: what runs out first says where to look. Leaves that direction's prices behind. */
void tt_search_propose(tt_search *s, uint32_t depth, tt_room room) {
  uint64_t best = 0;
  uint32_t direction = STEPS + 1; /* none yet */
  uint32_t low = 0;
  uint32_t high = STEPS;
  int shortage = 1;
  tt_search_play_from(s, depth);
  tt_search_shares(s, room);
  while (high - low > 1 && shortage != 0) {
    const uint32_t middle = (low + high) / 2;
    shortage = attempt(s, room, middle, &best, &direction);
    if (shortage > 0) {
      low = middle;
    } else {
      high = middle;
    }
  }
  if (shortage != 0) {
    attempt(s, room, 0, &best, &direction);
    attempt(s, room, STEPS, &best, &direction);
  }
  tt_search_prices(s, direction);
}
