#include "tt_session.h"

#include <math.h>
#include <string.h>

#include "tt_rows.h"
#include "tt_session_calls.h"

static int is_augmented(const tt_session *s) { return s->task->augment != NULL; }

static void keep_embedding(const tt_session *s, uint32_t index, float *embeddings) {
  memcpy(embeddings + (size_t)index * s->width, s->arena + s->output->offset,
         s->width * sizeof(float));
}

/* Embeddings of all samples. `store`: the frozen prefix is computed and kept; else it is taken from
 * the cache. */
static int embed(const tt_session *s, int store) {
  for (uint32_t i = 0; i < s->task->samples; i++) {
    const int kept = i < s->cached;
    const tt_entry *const entry = !kept ? s->predict : store ? s->predict_store : s->predict_cached;
    const int status = tt_session_run_sample(s, i, entry, !kept || store);
    if (status != TT_OK) {
      return status;
    }
    keep_embedding(s, i, s->embeddings);
  }
  return TT_OK;
}

/* Embeddings of the present pseudo-queries, where their seeds will be. */
static int embed_queries(tt_session *s) {
  s->next = s->batch;
  for (uint32_t i = 0; i < s->task->samples; i++) {
    const int status = tt_session_run_query(s, i, s->predict);
    if (status != TT_OK) {
      return status;
    }
    keep_embedding(s, i, s->seeds);
  }
  return TT_OK;
}

static tt_protonet_set set_of(const tt_session *s, const float *embeddings) {
  const tt_protonet_set set = {embeddings, s->task->labels, s->task->samples, s->task->classes,
                               s->width};
  return set;
}

/* Seeds of augmented queries, in place of their embeddings; and of the samples, in place of theirs,
 * by what flows through the prototypes. */
static double augmented_seeds(const tt_session *s, const tt_protonet_options *options) {
  const tt_protonet_set samples = set_of(s, s->embeddings);
  const tt_protonet_set queries = set_of(s, s->seeds);
  const double loss =
      tt_protonet_query_seeds(&queries, options, s->prototypes, s->scratch, s->seeds);
  if (options->through_prototypes) {
    memset(s->embeddings, 0, (size_t)s->task->samples * s->width * sizeof(float));
    tt_protonet_support_seeds(&samples, options, s->prototypes, s->scratch, s->embeddings);
  }
  return loss;
}

/* Prototypes of the present embeddings, and the seeds; with `fisher` those of the Fisher pass, each
 * for the sum of all losses. */
static int seeds(tt_session *s, int fisher, float *loss) {
  const tt_protonet_set set = set_of(s, s->embeddings);
  tt_protonet_options options = s->task->prototypes;
  if (fisher) {
    options.through_prototypes = s->task->fisher_through_prototypes;
  }
  const int status = tt_protonet_prototypes(&set, s->prototypes);
  if (status != TT_OK) {
    return status;
  }
  *loss = (float)(is_augmented(s)
                      ? augmented_seeds(s, &options)
                      : tt_protonet_seeds(&set, &options, s->prototypes, s->scratch, s->seeds));
  for (size_t k = 0; fisher && k < (size_t)s->task->samples * s->width; k++) {
    s->seeds[k] *= (float)s->task->samples;
    s->embeddings[k] *= (float)s->task->samples; /* seeds too where queries are augmented */
  }
  return TT_OK;
}

/* What a loss that couples the samples asks for first. */
static int couple(tt_session *s, int store, int fisher, float *loss) {
  if (s->seed == NULL) {
    return TT_OK;
  }
  int status = embed(s, store);
  status = status == TT_OK && is_augmented(s) ? embed_queries(s) : status;
  return status == TT_OK ? seeds(s, fisher, loss) : status;
}

/* Runs an entry on every sample, from what flows through the prototypes into it; where samples and
 * queries are the same it stands in the queries' seeds. */
static int run_support(const tt_session *s, int through_prototypes, const tt_entry *entry,
                       const tt_entry *cached) {
  int status = TT_OK;
  if (!is_augmented(s) || s->seed == NULL || !through_prototypes) {
    return TT_OK;
  }
  for (uint32_t i = 0; i < s->task->samples && status == TT_OK; i++) {
    const int kept = i < s->cached;
    tt_session_put_target(s, i, s->embeddings);
    status = tt_session_run_sample(s, i, kept ? cached : entry, !kept);
  }
  return status;
}

/* The Fisher pass over one query for each sample. */
static int measure(tt_session *s) {
  float loss;
  int status = couple(s, 0, 1, &loss);
  status = status == TT_OK ? tt_session_run(s, s->fisher_begin) : status;
  s->next = s->batch;
  for (uint32_t i = 0; i < s->task->samples && status == TT_OK; i++) {
    tt_session_put_target(s, i, s->seeds);
    status = is_augmented(s) ? tt_session_run_query(s, i, s->fisher)
                             : tt_session_run_sample(s, i, s->fisher, 1);
  }
  s->batch = s->next;
  return status == TT_OK ? run_support(s, s->task->fisher_through_prototypes, s->fisher, s->fisher)
                         : status;
}

/* Trains on one query. What is augmented is another image each time: no cache knows it. */
static int train_query(tt_session *s, uint32_t index, int store) {
  const int kept = index < s->cached;
  const tt_entry *const entry = !kept ? s->train : store ? s->train_store : s->train_cached;
  tt_session_put_target(s, index, s->seeds);
  return is_augmented(s) ? tt_session_run_query(s, index, s->train)
                         : tt_session_run_sample(s, index, entry, !kept || store);
}

/* One pass over the queries; `store` as in `embed`, for a loss that does not couple them. */
static int train_queries(tt_session *s, int store, float *loss) {
  double sum = 0.0;
  s->next = s->batch;
  for (uint32_t i = 0; i < s->task->samples; i++) {
    const int status = train_query(s, i, store);
    if (status != TT_OK) {
      return status;
    }
    if (s->loss != NULL) {
      float value;
      memcpy(&value, s->arena + s->loss->offset, sizeof value);
      sum += (double)value;
    }
  }
  s->batch = s->next;
  if (s->seed == NULL) {
    *loss = (float)(sum / s->task->samples);
  }
  return TT_OK;
}

static int train(tt_session *s, tt_session_result *result) {
  int status = TT_OK;
  for (uint32_t iteration = 0; iteration < s->task->iterations && status == TT_OK; iteration++) {
    const int first = iteration == 0;
    float loss = 0.0f;
    status = couple(s, first, 0, &loss);
    status = status == TT_OK ? train_queries(s, s->seed == NULL && first, &loss) : status;
    status = status == TT_OK
                 ? run_support(s, s->task->prototypes.through_prototypes, s->train, s->train_cached)
                 : status;
    status = status == TT_OK && s->apply != NULL ? tt_session_run(s, s->apply) : status;
    result->last_loss = loss;
    result->first_loss = first ? loss : result->first_loss;
  }
  return status;
}

/* Prototypes of the trained network. */
static int conclude(const tt_session *s) {
  if (s->seed == NULL) {
    return TT_OK;
  }
  const int status = embed(s, s->task->iterations == 0);
  const tt_protonet_set set = set_of(s, s->embeddings);
  return status == TT_OK ? tt_protonet_prototypes(&set, s->prototypes) : status;
}

/* Whether rate and labels are as tt_session.h says. */
static int check_task(const tt_session_task *task) {
  int sound = task->samples != 0 && task->rate >= 0.0f && task->rate < INFINITY;
  for (uint32_t i = 0; i < task->samples && sound; i++) {
    sound = task->labels[i] >= 0 && (uint32_t)task->labels[i] < task->classes;
  }
  return sound ? TT_OK : TT_ERR_BAD_VALUE;
}

static void begin(const tt_session *s) {
  float hyper[3];
  const uint32_t samples = s->task->samples;
  memcpy(hyper, s->arena + s->hyper->offset, sizeof hyper);
  hyper[0] = s->task->rate > 0.0f ? s->task->rate : hyper[0];
  hyper[1] = 0.0f; /* Adam's bias corrections, as before its first step */
  hyper[2] = 0.0f;
  tt_session_put(s, s->hyper, hyper, sizeof hyper);
  memcpy(s->arena + s->options->offset + s->options->bytes - sizeof samples, &samples,
         sizeof samples);
}

static uint32_t count_layers(const tt_session *s) {
  uint32_t layers = 0;
  for (uint32_t i = 0; i < 64; i++) {
    layers += tt_session_plan_word(s, TT_PLAN_SELECTED + (i >> 5)) >> (i & 31) & 1;
  }
  return layers;
}

/* Samples that the cache has room for; none where nothing but augmented samples is computed. */
static uint32_t count_cached(const tt_session *s) {
  const uint32_t slots = tt_session_plan_word(s, s->plan->bytes / 4 - 1);
  if (is_augmented(s) && s->seed == NULL) {
    return 0;
  }
  return slots < s->task->samples ? slots : s->task->samples;
}

static int adapt(tt_session *s, tt_session_result *result) {
  begin(s);
  int status = tt_session_run(s, s->release);
  status = status == TT_OK ? measure(s) : status;
  status = status == TT_OK ? tt_session_run(s, s->select) : status;
  if (status != TT_OK) {
    return status;
  }
  result->layers = count_layers(s);
  if (result->layers != 0) {
    s->cached = count_cached(s);
    result->cached = s->cached;
    status = train(s, result);
  }
  return status == TT_OK ? conclude(s) : status;
}

int tt_session_adapt(const tt_library *library, void *arena, const tt_session_task *task,
                     tt_session_result *result) {
  tt_session s;
  memset(result, 0, sizeof *result);
  int status = tt_session_open(&s, library, arena, task);
  status = status == TT_OK ? check_task(task) : status;
  if (status != TT_OK) {
    return status;
  }
  float rate; /* the library's own: of the next session too */
  memcpy(&rate, s.arena + s.hyper->offset, sizeof rate);
  status = adapt(&s, result);
  tt_session_put(&s, s.hyper, &rate, sizeof rate);
  return status;
}

int tt_session_classify(const tt_library *library, void *arena, const tt_session_task *task,
                        uint32_t index, int32_t *label) {
  tt_session s;
  int status = tt_session_open(&s, library, arena, task);
  status = status == TT_OK ? tt_session_put_sample(&s, index) : status;
  status = status == TT_OK ? tt_session_run(&s, s.predict) : status;
  if (status != TT_OK) {
    return status;
  }
  const float *const output = (const float *)(const void *)(s.arena + s.output->offset);
  if (s.seed != NULL) {
    *label = tt_protonet_nearest(output, s.prototypes, task->classes, s.width, &task->prototypes);
    return TT_OK;
  }
  *label = 0;
  for (uint32_t c = 1; c < s.width; c++) {
    *label = output[c] > output[*label] ? (int32_t)c : *label;
  }
  return TT_OK;
}
