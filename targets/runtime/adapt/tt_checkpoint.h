/* Checkpoints: what a library has learnt, as bytes for flash or a file. Only the trained rows of
 * weights and biases are in it, not gradients, optimizer state or anything that was not changed.
 *
 *   offset  bytes  content, numbers little-endian
 *   0       4      "TTCK"
 *   4       2      version, 1
 *   6       2      bytes of this header, 40
 *   8       16     the library's digest, hexadecimal digits
 *   24      4      channels of all candidates
 *   28      4      trained channels, at least 1
 *   32      4      bytes of the rows
 *   36      4      bytes of the whole checkpoint
 *   40      ...    bit map of the trained channels, filled up to a multiple of 4 bytes with zeros
 *   ...     ...    rows of each tensor TT_ROWS_COPY in the order of the table, channels ascending
 *   ...     4      CRC-32 (IEEE) of all before
 *
 * The CRC comes last, so a write that was interrupted is refused. To keep an older checkpoint until
 * a new one is complete, write to two places in turn. */
#ifndef TT_CHECKPOINT_H
#define TT_CHECKPOINT_H

#include "tt_rows.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TT_CHECKPOINT_VERSION 1u
#define TT_CHECKPOINT_HEADER 40u
#define TT_CHECKPOINT_DIGEST 16u

/* Takes the next bytes of a checkpoint, e.g. into flash; what it returns other than 0 ends the save
 * and is its result. */
typedef int (*tt_checkpoint_sink)(void *context, const void *bytes, size_t count);

/* Bytes of a checkpoint of the plan that is installed, 0 if none is. */
size_t tt_checkpoint_size(const tt_rows_table *table, const uint32_t *plan);

/* Gives the checkpoint of the plan that is installed to a sink, in order. Nothing of the arena is
 * changed. Returns TT_ERR_STATE if no plan is installed, TT_ERR_BAD_VALUE if its channel lists are
 * damaged, both before the sink is called. */
int tt_checkpoint_save(const tt_rows_table *table, const char *digest, const uint32_t *plan,
                       const unsigned char *arena, tt_checkpoint_sink sink, void *context);

/* The same into a buffer outside of the arena; TT_ERR_RANGE if it has less than
 * tt_checkpoint_size. */
int tt_checkpoint_write(const tt_rows_table *table, const char *digest, const uint32_t *plan,
                        const unsigned char *arena, void *buffer, size_t capacity);

/* Whether `bytes` begin with a checkpoint of this library. Returns TT_OK, or
 *   TT_ERR_TORN       it is cut short or damaged
 *   TT_ERR_VERSION    it is no checkpoint, or one of another format
 *   TT_ERR_FOREIGN    it is another library's
 *   TT_ERR_BAD_VALUE  its plan and its rows contradict each other */
int tt_checkpoint_check(const tt_rows_table *table, const char *digest, const void *bytes,
                        size_t count);

/* Installs a checkpoint's plan and rows; gradients and optimizer state begin at zero. `bytes` lie
 * outside of the arena. Returns what tt_checkpoint_check says, or TT_ERR_ARENA_SMALL; plan and
 * arena are as they were then. */
int tt_checkpoint_load(const tt_rows_table *table, const char *digest, const void *bytes,
                       size_t count, uint32_t *plan, unsigned char *arena);

#ifdef __cplusplus
}
#endif

#endif /* TT_CHECKPOINT_H */
