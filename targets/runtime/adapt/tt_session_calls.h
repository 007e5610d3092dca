/* What a session is made of: the library's entries and tensors, the caller's scratch, one call on
 * one sample. tt_session.c puts them in order; nothing else includes this. */
#ifndef TT_SESSION_CALLS_H
#define TT_SESSION_CALLS_H

#include "tt_session.h"

typedef struct {
  const tt_session_task *task;
  unsigned char *arena;
  const tt_entry *release, *fisher_begin, *fisher, *select, *predict;
  const tt_entry *predict_store, *predict_cached;
  const tt_entry *train, *train_store, *train_cached; /* accumulate, or step for each sample */
  const tt_entry *apply;                              /* NULL: every sample is a step */
  const tt_tensor *input, *label, *seed, *output, *loss, *hyper, *slot, *plan, *options;
  uint32_t width; /* of the output */
  uint32_t cached;
  double *prototypes; /* [classes][width] */
  void *scratch;      /* of tt_protonet_seeds */
  float *embeddings;  /* [samples][width]; augmented: their seeds take the same place */
  float *seeds;       /* [samples][width] of the queries; augmented: their embeddings came first */
  float *image;       /* augmented: the sample that a query is made of */
  tt_augment_shape shape;
  uint64_t batch; /* state of the generator where the present queries begin */
  uint64_t next;  /* and where the next of them begins */
} tt_session;

/* Finds entries and tensors and lays out the scratch; refuses what tt_session_adapt refuses. */
int tt_session_open(tt_session *s, const tt_library *library, void *arena,
                    const tt_session_task *task);

/* Runs an entry by the task's runner. */
int tt_session_run(const tt_session *s, const tt_entry *entry);

/* Writes a tensor's first bytes. */
void tt_session_put(const tt_session *s, const tt_tensor *tensor, const void *value, size_t bytes);

/* Writes a sample to the input. */
int tt_session_put_sample(const tt_session *s, uint32_t index);

/* Runs an entry that reads the sample, or its cached twin that does not. */
int tt_session_run_sample(const tt_session *s, uint32_t index, const tt_entry *entry,
                          int reads_input);

/* Runs an entry on the pseudo-query of a sample: augmented by the next draws. */
int tt_session_run_query(tt_session *s, uint32_t index, const tt_entry *entry);

/* What a backward pass begins with: the sample's label, or the gradient of an embedding. */
void tt_session_put_target(const tt_session *s, uint32_t index, const float *seeds);

uint32_t tt_session_plan_word(const tt_session *s, uint32_t index);

#endif /* TT_SESSION_CALLS_H */
