/* A whole task-adaptive session without a host: Fisher pass -> select -> train -> classify.
 *
 * Works on any task-adaptive library through its table of tensors and entries. A library with the
 * tensor `seed` (loss Prototypical) is trained as a ProtoNet whose samples are support and queries
 * at once; one with a `label` of one int32, a class, by its own loss. A library built to accumulate
 * gradients takes one step of the optimizer per iteration, any other one per sample, in the order
 * of the samples. What lies before the earliest selected layer is computed once per sample where
 * the cache has room. Nothing is allocated.
 *
 * With `augment` the pseudo-queries are made of the samples by tt_augment.h: one of each sample for
 * the Fisher pass, then new ones in every iteration, as tvm_tinytrain.adaptation does on the host;
 * with the same draws (adaptation.DeviceDraws) the host makes the same images. The samples
 * themselves are the support set then: their prototypes, and the gradient through these, may come
 * from the cache. An augmented query is another image each time, so that no cache can hold it: its
 * whole forward pass is computed. With a library's own loss nothing but augmented samples is
 * trained, and nothing is cached. */
#ifndef TT_SESSION_H
#define TT_SESSION_H

#include "tt_augment.h"
#include "tt_protonet.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Writes sample `index` to the library's input, of `bytes` bytes; returns TT_OK, or what ends the
 * session. A sample must be the same each time. */
typedef int (*tt_session_source)(void *context, uint32_t index, void *input, uint32_t bytes);

/* Runs one entry; NULL for a plain call. A firmware may count or guard what it runs here. */
typedef int (*tt_session_runner)(void *context, const tt_entry *entry, void *arena);

typedef struct {
  tt_session_source source;
  tt_session_runner runner;
  void *context;
  const int32_t *labels; /* [samples], 0 .. classes - 1 */
  uint32_t samples;
  uint32_t classes;
  uint32_t iterations;               /* passes over the samples */
  float rate;                        /* of the optimizer in this session; 0: the library's own */
  tt_protonet_options prototypes;    /* for a library with `seed` */
  void *scratch;                     /* aligned to 8; kept until the last tt_session_classify */
  size_t scratch_bytes;              /* at least tt_session_scratch_bytes */
  const tt_augment_options *augment; /* NULL: the samples are their own queries */
  uint64_t seed;                     /* of the augmentation */
  uint8_t fisher_through_prototypes; /* the Fisher pass measures what flows through them too */
} tt_session_task;

typedef struct {
  uint32_t layers;  /* that were selected; 0: nothing fits the budgets, and nothing was trained */
  uint32_t cached;  /* samples whose frozen prefix was computed once */
  float first_loss; /* means over the queries in the first and the last iteration */
  float last_loss;
} tt_session_result;

/* By the task's samples, classes and augment. A library with its own loss needs 0, any library the
 * bytes of one more input where queries are augmented. */
size_t tt_session_scratch_bytes(const tt_library *library, const tt_session_task *task);

/* Adapts the library, from the network's own weights. Returns TT_OK, also where nothing fits the
 * budgets; TT_ERR_NO_ENTRY or TT_ERR_NO_TENSOR for a library that is not task-adaptive, or has the
 * tensor `seed` and no entry `accumulate`, or neither `seed` nor a label of one int32;
 * TT_ERR_NO_IMAGE where queries are to be augmented and the input is no
 * float32[1][channels][height][width]; TT_ERR_ARENA_SMALL for too little scratch;
 * TT_ERR_BAD_VALUE for labels out of range, no sample, a rate that is negative or not finite, or
 * options of the augmentation outside of [0, 1]; or what an entry or the source returned. */
int tt_session_adapt(const tt_library *library, void *arena, const tt_session_task *task,
                     tt_session_result *result);

/* The label of a sample that the source knows under `index`, by the adapted library: the nearest
 * prototype, or the largest output. */
int tt_session_classify(const tt_library *library, void *arena, const tt_session_task *task,
                        uint32_t index, int32_t *label);

#ifdef __cplusplus
}
#endif

#endif /* TT_SESSION_H */
