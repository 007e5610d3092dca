/* Trained rows: which output channels of which candidate layers a task-adaptive library trains, and
 * where their rows lie.
 *
 * The plan stands in the arena as words, so that a host can read it as a tensor:
 *
 *   word 0       depth: position of the earliest selected candidate; num_candidates if none is
 *   words 1, 2   bit mask of the selected candidates, low word first
 *   then         trained channels of each candidate
 *   then         offset in the arena of each row tensor, in bytes
 *   last word    where the rows end; the bytes behind are a cache of the frozen prefix
 */
#ifndef TT_ROWS_H
#define TT_ROWS_H

#include "tinytrain.h"

/* What a row tensor holds when it is installed. */
typedef enum {
  TT_ROWS_ZERO = 0, /* gradients and optimizer state */
  TT_ROWS_COPY,     /* rows of a weight or bias in flash */
  TT_ROWS_CHANNELS  /* the channel list itself */
} tt_rows_kind;

typedef struct {
  uint16_t candidate;
  uint16_t kind;      /* tt_rows_kind */
  uint32_t row_bytes; /* of one channel */
  const void *source; /* in flash, for TT_ROWS_COPY */
} tt_row_tensor;

typedef struct {
  uint32_t num_candidates;
  uint32_t num_tensors;
  uint32_t arena_bytes;
  const uint16_t *channels;         /* of each candidate */
  const uint32_t *activation_bytes; /* by depth, num_candidates + 1 of them: the rows begin there */
  const tt_row_tensor *tensors;
} tt_rows_table;

#define TT_PLAN_DEPTH 0
#define TT_PLAN_SELECTED 1
#define TT_PLAN_ROWS 3

/* Words of the plan. */
uint32_t tt_rows_plan_words(const tt_rows_table *table);

/* Nothing is selected. */
void tt_rows_clear(const tt_rows_table *table, uint32_t *plan);

/* Selects the channels whose bit is set: bit c of `bitmap` (low bits first) is channel c of the
 * candidates' channels one after the other. Copies their rows from flash and clears gradients and
 * state. Returns TT_ERR_ARENA_SMALL, and changes nothing, if the rows do not fit; TT_ERR_BAD_VALUE
 * if no channel is selected. */
int tt_rows_install(const tt_rows_table *table, uint32_t *plan, const uint8_t *bitmap,
                    unsigned char *arena);

/* A tensor that is alive where an entry can be cut. */
typedef struct {
  uint32_t offset;
  uint32_t bytes;
} tt_cache_item;

/* Cache slots, of `slot_bytes` each, that the arena has room for behind the trained rows. */
uint32_t tt_cache_slots(const tt_rows_table *table, const uint32_t *plan, uint32_t slot_bytes);

/* Copies the items of one sample into cache slot `slot` (load == 0) or back out of it. Returns
 * TT_ERR_RANGE, and copies nothing, where there is no such slot. */
int tt_cache_move(const tt_rows_table *table, const uint32_t *plan, const tt_cache_item *items,
                  uint32_t count, uint32_t slot, unsigned char *arena, int load);

#endif /* TT_ROWS_H */
