/* Trained rows: which output channels of which candidate layers a task-adaptive library trains, and
 * where their rows lie.
 *
 * The plan stands in the arena as words, so that a host can read it as a tensor:
 *
 *   word 0       depth: position of the earliest selected candidate; num_candidates if none is
 *   words 1, 2   bit mask of the selected candidates, low word first
 *   then         trained channels of each candidate
 *   then         offset in the arena of each row tensor, in bytes
 *   then         where the rows end; behind lies the frozen prefix's cache, if it has no pool
 *   then         what the cache keeps (tt_cache_point)
 *   then         1 while Fisher potentials are in the arena: predict writes over them
 *   the last     for how many samples the cache has room
 */
#ifndef TT_ROWS_H
#define TT_ROWS_H

#include "tinytrain.h"

#ifdef __cplusplus
extern "C" {
#endif

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
  const uint32_t
      *slot_bytes;       /* [num_candidates][2] of the cache, mark included, by depth and point */
  uint32_t cache_format; /* tt_cache_format */
  unsigned char *cache;  /* a pool of its own, or NULL: the arena behind the rows */
  uint32_t cache_bytes;  /* of that pool */
} tt_rows_table;

#define TT_PLAN_DEPTH 0
#define TT_PLAN_SELECTED 1
#define TT_PLAN_ROWS 3

/* Words of the plan. */
uint32_t tt_rows_plan_words(const tt_rows_table *table);

/* Whether these words are a plan, which they are from init on. An arena of zeros is none: it names
 * a selected candidate without trained channels. */
int tt_rows_is_plan(const tt_rows_table *table, const uint32_t *plan);

/* Whether it is a plan that trains some channels. */
int tt_rows_is_trained(const tt_rows_table *table, const uint32_t *plan);

/* Nothing is selected. */
void tt_rows_clear(const tt_rows_table *table, uint32_t *plan);

/* Selects the channels whose bit is set: bit c of `bitmap` (low bits first) is channel c of the
 * candidates' channels one after the other. Copies their rows from flash and clears gradients and
 * state. No bit at all is a plan too: the frozen network. The cache has no slot before
 * tt_cache_choose. Returns TT_ERR_ARENA_SMALL, and changes nothing, if the rows do not fit. */
int tt_rows_install(const tt_rows_table *table, uint32_t *plan, const uint8_t *bitmap,
                    unsigned char *arena);

/* What is kept of a sample: what the earliest selected layer reads; or also what its frozen weights
 * make of that, which takes more bytes and saves the layer's forward pass. */
typedef enum {
  TT_CACHE_INPUT = 0,
  TT_CACHE_RESULT = 1
} tt_cache_point;

/* How float32 values are kept. FLOAT16 rounds to nearest even; INT8 counts in units of the largest
 * magnitude of a tensor over 127. */
typedef enum {
  TT_CACHE_FLOAT32 = 0,
  TT_CACHE_FLOAT16 = 1,
  TT_CACHE_INT8 = 2
} tt_cache_format;

/* A tensor that is alive where an entry can be cut. */
typedef struct {
  uint32_t offset;
  uint32_t bytes;
  uint32_t floats; /* its number of float32 values, 0 for another type */
} tt_cache_item;

/* Places of the last words of the plan, behind its offsets of row tensors. */
#define TT_PLAN_END(table) (TT_PLAN_ROWS + (table)->num_candidates + (table)->num_tensors)
#define TT_PLAN_POINT(table) (TT_PLAN_END(table) + 1)
#define TT_PLAN_MEASURED(table) (TT_PLAN_END(table) + 2)
#define TT_PLAN_SLOTS(table) (TT_PLAN_END(table) + 3)

/* A slot of the cache begins with a word that says whether a sample was stored there since the plan
 * was installed. */
#define TT_CACHE_MARK_BYTES 4u

/* Decides what the cache keeps: TT_CACHE_RESULT where it then has room for `samples` samples (0:
 * not known), else TT_CACHE_INPUT. Slots in the arena end below `budget` bytes of it. Writes these
 * two words of the plan, and empties all slots. */
void tt_cache_choose(const tt_rows_table *table, uint32_t *plan, uint32_t samples, uint32_t budget,
                     unsigned char *arena);

/* Bytes that an item takes in the cache. */
uint32_t tt_cache_kept_bytes(const tt_rows_table *table, const tt_cache_item *item);

/* Copies the items of one sample into cache slot `slot` (load == 0) or back out of it. Returns
 * TT_ERR_RANGE where there is no such slot, TT_ERR_STATE where a slot to load from was not stored
 * for this plan; copies nothing then. */
int tt_cache_move(const tt_rows_table *table, const uint32_t *plan, const tt_cache_item *items,
                  uint32_t count, uint32_t slot, unsigned char *arena, int load);

#ifdef __cplusplus
}
#endif

#endif /* TT_ROWS_H */
