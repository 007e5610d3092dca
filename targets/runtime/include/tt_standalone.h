/* A firmware that adapts by itself when it starts: Fisher pass, selection, training, prediction,
 * checkpoint; no host takes part. Afterwards it serves, so that a host can look at what it did. */
#ifndef TT_STANDALONE_H
#define TT_STANDALONE_H

#include "tt_checkpoint.h"
#include "tt_session.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What is linked into flash with the library. A sample is uint8; an input of float32 gets
 * scale * value + offset. The first `support` samples are trained on, the rest is classified. */
typedef struct {
  const uint8_t *samples;
  const int32_t *labels; /* of the support samples */
  uint32_t sample_values;
  uint32_t support;
  uint32_t queries;
  uint32_t classes;
  uint32_t iterations;
  float scale;
  float offset;
  float rate;
  tt_protonet_options prototypes;
  void *scratch;
  size_t scratch_bytes;
  const tt_augment_options *augment; /* NULL: the support samples are their own queries */
  uint64_t seed;
  uint8_t fisher_through_prototypes;
  size_t (*save_size)(const void *arena);
  int (*save_to)(const void *arena, tt_checkpoint_sink sink, void *context);
} tt_standalone_task;

extern const tt_standalone_task tt_standalone;

/* Runs the session and writes to the console, each line after "tt-standalone: ":
 *   result STATUS LAYERS CACHED FIRST LAST   of tt_session_adapt; losses as bits of float32
 *   labels LABEL ...                         of the queries, in as many lines as they take
 *   checkpoint STATUS BYTES CRC32            the CRC-32 that the checkpoint ends with; no line
 *                                            where nothing was selected
 *   calls COUNT                              of all entries that ran
 *   entries REPEATS (INDEX COUNT) ...        a line for each loop of what ran, in order: INDEX is a
 *                                            place in the library's table, COUNT how often it ran
 *                                            in a row, REPEATS how often the whole line was done
 *   end LINES                                before this one
 * Numbers are decimal. Of a session with loops other than iterations the last entries may be
 * missing: COUNT of `calls` says so. */
void tt_standalone_run(const tt_library *library, uint8_t *arena);

#ifdef __cplusplus
}
#endif

#endif /* TT_STANDALONE_H */
