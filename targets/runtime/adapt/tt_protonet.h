/* ProtoNet (Snell et al., NeurIPS 2017): class prototypes, the loss of a set of samples that are
 * their own queries, and its exact gradient with respect to each embedding. All sums are double and
 * run in ascending order; tvm_tinytrain.adaptation.protonet computes the same. */
#ifndef TT_PROTONET_H
#define TT_PROTONET_H

#include "tinytrain.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  TT_PROTONET_COSINE = 0,   /* logit = scale * cosine similarity */
  TT_PROTONET_EUCLIDEAN = 1 /* logit = -scale * squared distance */
} tt_protonet_distance;

typedef struct {
  uint8_t distance;           /* tt_protonet_distance */
  uint8_t through_prototypes; /* the gradient flows through the prototypes too */
  float scale;
} tt_protonet_options;

/* A labelled set: embeddings[samples][width], labels[samples] in 0 .. classes - 1, each class with
 * a sample. */
typedef struct {
  const float *embeddings;
  const int32_t *labels;
  uint32_t samples;
  uint32_t classes;
  uint32_t width;
} tt_protonet_set;

/* Bytes that tt_protonet_seeds works in, aligned to 8. */
size_t tt_protonet_scratch_bytes(uint32_t classes, uint32_t width);

/* prototypes[classes][width]: the mean embedding of each class. Returns TT_ERR_BAD_VALUE for a
 * label out of range or a class without a sample. */
int tt_protonet_prototypes(const tt_protonet_set *set, double *prototypes);

/* seeds[samples][width]: d loss / d embedding of the mean cross-entropy over all samples, which are
 * queries and support at once. Returns the loss. */
double tt_protonet_seeds(const tt_protonet_set *set, const tt_protonet_options *options,
                         const double *prototypes, void *scratch, float *seeds);

/* The same for queries that are not the support set: without what flows through the prototypes,
 * which stays in `scratch`. `seeds` may be the place of the embeddings. */
double tt_protonet_query_seeds(const tt_protonet_set *queries, const tt_protonet_options *options,
                               const double *prototypes, void *scratch, float *seeds);

/* Adds to seeds[samples][width] of the support set what flows through the prototypes; `scratch` is
 * as tt_protonet_query_seeds left it, and is spent. Embeddings are not read. */
void tt_protonet_support_seeds(const tt_protonet_set *support, const tt_protonet_options *options,
                               const double *prototypes, void *scratch, float *seeds);

/* The class of the largest logit; the first one of equals. */
int32_t tt_protonet_nearest(const float *embedding, const double *prototypes, uint32_t classes,
                            uint32_t width, const tt_protonet_options *options);

#ifdef __cplusplus
}
#endif

#endif /* TT_PROTONET_H */
