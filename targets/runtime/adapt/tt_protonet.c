#include "tt_protonet.h"

#include <math.h>
#include <string.h>

/* A norm below this counts as this, as in torch.nn.functional.normalize. */
#define TINY 1e-12

static double length_of(const double *v, uint32_t width) {
  double sum = 0.0;
  for (uint32_t k = 0; k < width; k++) {
    sum += v[k] * v[k];
  }
  return sqrt(sum);
}

static double at_least_tiny(double norm) { return norm > TINY ? norm : TINY; }

static void widen(const float *from, double *to, uint32_t width) {
  for (uint32_t k = 0; k < width; k++) {
    to[k] = from[k];
  }
}

int tt_protonet_prototypes(const tt_protonet_set *set, double *prototypes) {
  const uint32_t width = set->width;
  memset(prototypes, 0, (size_t)set->classes * width * sizeof *prototypes);
  for (uint32_t i = 0; i < set->samples; i++) {
    if (set->labels[i] < 0 || (uint32_t)set->labels[i] >= set->classes) {
      return TT_ERR_BAD_VALUE;
    }
    double *const own = prototypes + (size_t)set->labels[i] * width;
    for (uint32_t k = 0; k < width; k++) {
      own[k] += (double)set->embeddings[(size_t)i * width + k];
    }
  }
  for (uint32_t c = 0; c < set->classes; c++) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < set->samples; i++) {
      count += (uint32_t)set->labels[i] == c;
    }
    if (count == 0) {
      return TT_ERR_BAD_VALUE;
    }
    for (uint32_t k = 0; k < width; k++) {
      prototypes[(size_t)c * width + k] /= count;
    }
  }
  return TT_OK;
}

/* Logits of one query, given as double[width]. */
static void logits_of(const double *query, const double *prototypes, uint32_t classes,
                      uint32_t width, const tt_protonet_options *options, double *logits) {
  const double scale = options->scale;
  const double query_norm = at_least_tiny(length_of(query, width));
  for (uint32_t c = 0; c < classes; c++) {
    const double *const p = prototypes + (size_t)c * width;
    double sum = 0.0;
    if (options->distance == TT_PROTONET_COSINE) {
      for (uint32_t k = 0; k < width; k++) {
        sum += query[k] * p[k];
      }
      logits[c] = scale * (sum / query_norm / at_least_tiny(length_of(p, width)));
    } else {
      for (uint32_t k = 0; k < width; k++) {
        sum += (query[k] - p[k]) * (query[k] - p[k]);
      }
      logits[c] = -scale * sum;
    }
  }
}

/* gradient (with respect to v / max(|v|, tiny)) becomes that with respect to v. */
static void through_unit(double *gradient, const double *v, uint32_t width) {
  const double norm = length_of(v, width);
  const double divisor = at_least_tiny(norm);
  double along = 0.0;
  for (uint32_t k = 0; k < width; k++) {
    along += gradient[k] * (v[k] / divisor);
  }
  for (uint32_t k = 0; k < width; k++) {
    const double inside = norm > TINY ? v[k] / divisor * along : 0.0;
    gradient[k] = (gradient[k] - inside) / divisor;
  }
}

/* Softmax of the logits, in place; returns -log of the label's probability. */
static double to_probabilities(double *logits, uint32_t classes, uint32_t label) {
  double largest = logits[0];
  double sum = 0.0;
  for (uint32_t c = 1; c < classes; c++) {
    largest = logits[c] > largest ? logits[c] : largest;
  }
  const double shifted = logits[label] - largest;
  for (uint32_t c = 0; c < classes; c++) {
    logits[c] = exp(logits[c] - largest);
    sum += logits[c];
  }
  for (uint32_t c = 0; c < classes; c++) {
    logits[c] /= sum;
  }
  return log(sum) - shifted;
}

/* Adds slope * d logit / d (query, prototype), without the scale, of one pair. `unit` divides. */
static void pull_back(double slope, const double *query, const double *p, uint32_t width,
                      int cosine, double *to_query, double *to_prototype) {
  if (cosine) {
    const double query_norm = at_least_tiny(length_of(query, width));
    const double p_norm = at_least_tiny(length_of(p, width));
    for (uint32_t k = 0; k < width; k++) {
      to_query[k] += slope * (p[k] / p_norm);
      to_prototype[k] += slope * (query[k] / query_norm);
    }
    return;
  }
  for (uint32_t k = 0; k < width; k++) {
    to_query[k] += 2.0 * slope * (p[k] - query[k]);
    to_prototype[k] += 2.0 * slope * (query[k] - p[k]);
  }
}

size_t tt_protonet_scratch_bytes(uint32_t classes, uint32_t width) {
  return ((size_t)classes * width + 2 * (size_t)width + classes) * sizeof(double);
}

void tt_protonet_support_seeds(const tt_protonet_set *set, const tt_protonet_options *options,
                               const double *prototypes, void *scratch, float *seeds) {
  const uint32_t width = set->width;
  const int cosine = options->distance == TT_PROTONET_COSINE;
  double *const to_prototypes = (double *)scratch;
  for (uint32_t c = 0; c < set->classes; c++) {
    double *const own = to_prototypes + (size_t)c * width;
    uint32_t count = 0;
    for (uint32_t i = 0; i < set->samples; i++) {
      count += (uint32_t)set->labels[i] == c;
    }
    if (cosine) {
      through_unit(own, prototypes + (size_t)c * width, width);
    }
    for (uint32_t i = 0; i < set->samples; i++) {
      if ((uint32_t)set->labels[i] != c) {
        continue;
      }
      for (uint32_t k = 0; k < width; k++) {
        seeds[(size_t)i * width + k] += (float)(own[k] / count);
      }
    }
  }
}

double tt_protonet_query_seeds(const tt_protonet_set *set, const tt_protonet_options *options,
                               const double *prototypes, void *scratch, float *seeds) {
  const uint32_t width = set->width;
  const int cosine = options->distance == TT_PROTONET_COSINE;
  double *const to_prototypes = (double *)scratch;
  double *const query = to_prototypes + (size_t)set->classes * width;
  double *const to_query = query + width;
  double *const probability = to_query + width;
  double loss = 0.0;
  memset(to_prototypes, 0, (size_t)set->classes * width * sizeof *to_prototypes);
  for (uint32_t i = 0; i < set->samples; i++) {
    const uint32_t label = (uint32_t)set->labels[i];
    widen(set->embeddings + (size_t)i * width, query, width);
    logits_of(query, prototypes, set->classes, width, options, probability);
    loss += to_probabilities(probability, set->classes, label);
    memset(to_query, 0, width * sizeof *to_query);
    for (uint32_t c = 0; c < set->classes; c++) {
      const double target = c == label ? 1.0 : 0.0;
      const double slope =
          (probability[c] - target) * ((double)options->scale / (double)set->samples);
      pull_back(slope, query, prototypes + (size_t)c * width, width, cosine, to_query,
                to_prototypes + (size_t)c * width);
    }
    if (cosine) {
      through_unit(to_query, query, width);
    }
    for (uint32_t k = 0; k < width; k++) {
      seeds[(size_t)i * width + k] = (float)to_query[k];
    }
  }
  return loss / (double)set->samples;
}

double tt_protonet_seeds(const tt_protonet_set *set, const tt_protonet_options *options,
                         const double *prototypes, void *scratch, float *seeds) {
  const double loss = tt_protonet_query_seeds(set, options, prototypes, scratch, seeds);
  if (options->through_prototypes) {
    tt_protonet_support_seeds(set, options, prototypes, scratch, seeds);
  }
  return loss;
}

int32_t tt_protonet_nearest(const float *embedding, const double *prototypes, uint32_t classes,
                            uint32_t width, const tt_protonet_options *options) {
  /* Logits one by one: only the largest is kept. */
  int32_t best = 0;
  double largest = 0.0;
  for (uint32_t c = 0; c < classes; c++) {
    const double *const p = prototypes + (size_t)c * width;
    double sum = 0.0;
    for (uint32_t k = 0; k < width; k++) {
      const double own = (double)embedding[k];
      const double difference = own - p[k];
      sum += options->distance == TT_PROTONET_COSINE ? own * p[k] : -difference * difference;
    }
    /* The query's own norm is a common factor. */
    const double logit =
        options->distance == TT_PROTONET_COSINE ? sum / at_least_tiny(length_of(p, width)) : sum;
    if (c == 0 || logit > largest) {
      largest = logit;
      best = (int32_t)c;
    }
  }
  return best;
}
