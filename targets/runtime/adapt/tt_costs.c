/* What a plan costs and what it captures. */
#include "tt_search.h"

uint32_t tt_search_earliest(const tt_search *s, const uint16_t *counts) {
  uint32_t i = 0;
  while (i < s->count && counts[i] == 0) {
    i++;
  }
  return i;
}

uint64_t tt_search_memory(const tt_search *s, const uint16_t *counts) {
  uint64_t bytes = s->problem->activation_bytes[tt_search_earliest(s, counts)];
  for (uint32_t i = 0; i < s->count; i++) {
    bytes += (uint64_t)counts[i] * s->candidates[i].channel_bytes;
  }
  return bytes;
}

uint64_t tt_search_macs(const tt_search *s, const uint16_t *counts) {
  uint64_t macs = 0;
  uint64_t selected = 0;
  for (uint32_t i = 0; i < s->count; i++) {
    macs += (uint64_t)counts[i] * s->candidates[i].channel_macs;
    selected |= (uint64_t)(counts[i] != 0) << i;
  }
  for (uint32_t i = 0; i < s->problem->num_links; i++) {
    if ((selected & s->problem->links[i].needed) != 0) {
      macs += s->problem->links[i].macs;
    }
  }
  return macs;
}

uint64_t tt_search_value(const tt_search *s, const uint16_t *counts) {
  uint64_t value = 0;
  for (uint32_t i = 0; i < s->count; i++) {
    const uint32_t *const q = s->q + s->first[i];
    for (uint32_t k = 0; k < counts[i]; k++) {
      value += q[k];
    }
  }
  return value;
}

int tt_search_room(const tt_search *s, const uint16_t *counts, tt_room *room) {
  room->bytes = s->memory_limit - (int64_t)tt_search_memory(s, counts);
  room->macs = s->macs_limit - (int64_t)tt_search_macs(s, counts);
  return room->bytes >= 0 && room->macs >= 0;
}

int tt_search_feasible(const tt_search *s, const uint16_t *counts) {
  tt_room room;
  return tt_search_room(s, counts, &room);
}
