#include "tt_session.h"

#include <string.h>

#include "tt_rows.h"

/* The library's entries and tensors that a session needs, found once. */
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
  float *embeddings; /* [samples][width] */
  float *seeds;
  double *prototypes; /* [classes][width] */
  void *scratch;      /* of tt_protonet_seeds */
} session;

static const tt_entry *entry_of(const tt_library *library, const char *name) {
  for (uint32_t i = 0; i < library->num_entries; i++) {
    if (strcmp(library->entries[i].name, name) == 0) {
      return &library->entries[i];
    }
  }
  return NULL;
}

static const tt_tensor *tensor_of(const tt_library *library, const char *name) {
  for (uint32_t i = 0; i < library->num_tensors; i++) {
    if (strcmp(library->tensors[i].name, name) == 0) {
      return &library->tensors[i];
    }
  }
  return NULL;
}

static const tt_tensor *input_of(const tt_library *library) {
  for (uint32_t i = 0; i < library->num_tensors; i++) {
    if (library->tensors[i].role == TT_ROLE_INPUT) {
      return &library->tensors[i];
    }
  }
  return NULL;
}

static int find(session *s, const tt_library *library, void *arena, const tt_session_task *task) {
  memset(s, 0, sizeof *s);
  s->task = task;
  s->arena = (unsigned char *)arena;
  s->release = entry_of(library, "release");
  s->fisher_begin = entry_of(library, "fisher_begin");
  s->fisher = entry_of(library, "fisher");
  s->select = entry_of(library, "select");
  s->apply = entry_of(library, "apply");
  s->predict = entry_of(library, "predict");
  s->predict_store = entry_of(library, "predict_store");
  s->predict_cached = entry_of(library, "predict_cached");
  s->train = entry_of(library, s->apply != NULL ? "accumulate" : "step");
  s->train_store = entry_of(library, s->apply != NULL ? "accumulate_store" : "step_store");
  s->train_cached = entry_of(library, s->apply != NULL ? "accumulate_cached" : "step_cached");
  if (s->release == NULL || s->fisher_begin == NULL || s->fisher == NULL || s->select == NULL ||
      s->predict == NULL || s->predict_store == NULL || s->predict_cached == NULL ||
      s->train == NULL || s->train_store == NULL || s->train_cached == NULL) {
    return TT_ERR_NO_ENTRY;
  }
  s->input = input_of(library);
  s->label = tensor_of(library, "label");
  s->seed = tensor_of(library, "seed");
  s->output = tensor_of(library, "output");
  s->loss = tensor_of(library, "loss");
  s->hyper = tensor_of(library, "hyper");
  s->slot = tensor_of(library, "slot");
  s->plan = tensor_of(library, "plan");
  s->options = tensor_of(library, "options");
  if (s->input == NULL || (s->seed == NULL && s->label == NULL) || s->output == NULL ||
      s->hyper == NULL || s->slot == NULL || s->plan == NULL || s->options == NULL) {
    return TT_ERR_NO_TENSOR;
  }
  if (s->seed != NULL && s->apply == NULL) { /* the prototypes are of all samples' embeddings */
    return TT_ERR_NO_ENTRY;
  }
  s->width = s->output->bytes / (uint32_t)sizeof(float);
  return TT_OK;
}

size_t tt_session_scratch_bytes(const tt_library *library, uint32_t samples, uint32_t classes) {
  const tt_tensor *const output = tensor_of(library, "output");
  if (tensor_of(library, "seed") == NULL || output == NULL) {
    return 0;
  }
  const uint32_t width = output->bytes / (uint32_t)sizeof(float);
  return (size_t)classes * width * sizeof(double) + tt_protonet_scratch_bytes(classes, width) +
         2 * (size_t)samples * width * sizeof(float);
}

/* Doubles first, so that all are aligned. */
static int lay_out(session *s, const tt_library *library) {
  const tt_session_task *const task = s->task;
  if (s->seed == NULL) {
    return TT_OK;
  }
  if (task->scratch_bytes < tt_session_scratch_bytes(library, task->samples, task->classes)) {
    return TT_ERR_ARENA_SMALL;
  }
  unsigned char *at = (unsigned char *)task->scratch;
  s->prototypes = (double *)(void *)at;
  at += (size_t)task->classes * s->width * sizeof(double);
  s->scratch = at;
  at += tt_protonet_scratch_bytes(task->classes, s->width);
  s->embeddings = (float *)(void *)at;
  s->seeds = s->embeddings + (size_t)task->samples * s->width;
  return TT_OK;
}

static int run(const session *s, const tt_entry *entry) {
  const tt_session_task *const task = s->task;
  return task->runner != NULL ? task->runner(task->context, entry, s->arena) : entry->run(s->arena);
}

static void put(const session *s, const tt_tensor *tensor, const void *value, size_t bytes) {
  memcpy(s->arena + tensor->offset, value, bytes);
}

static int put_sample(const session *s, uint32_t index) {
  return s->task->source(s->task->context, index, s->arena + s->input->offset, s->input->bytes);
}

static uint32_t plan_word(const session *s, uint32_t index) {
  uint32_t word;
  memcpy(&word, s->arena + s->plan->offset + 4 * (size_t)index, sizeof word);
  return word;
}

/* What the backward pass of a sample begins with: its label, or the gradient of its embedding. */
static void put_target(const session *s, uint32_t index) {
  if (s->seed == NULL) {
    put(s, s->label, &s->task->labels[index], sizeof(int32_t));
  } else {
    put(s, s->seed, s->seeds + (size_t)index * s->width, s->width * sizeof(float));
  }
}

/* Runs an entry that reads the sample, or its cached twin that does not. */
static int run_sample(const session *s, uint32_t index, const tt_entry *entry, int reads_input) {
  const int status = reads_input ? put_sample(s, index) : TT_OK;
  put(s, s->slot, &index, sizeof index);
  return status == TT_OK ? run(s, entry) : status;
}

/* Embeddings of all samples. `store`: the frozen prefix is computed and kept; else it is taken from
 * the cache. */
static int embed(const session *s, int store) {
  for (uint32_t i = 0; i < s->task->samples; i++) {
    const int kept = i < s->cached;
    const tt_entry *const entry = !kept ? s->predict : store ? s->predict_store : s->predict_cached;
    const int status = run_sample(s, i, entry, !kept || store);
    if (status != TT_OK) {
      return status;
    }
    memcpy(s->embeddings + (size_t)i * s->width, s->arena + s->output->offset,
           s->width * sizeof(float));
  }
  return TT_OK;
}

static tt_protonet_set set_of(const session *s) {
  const tt_protonet_set set = {s->embeddings, s->task->labels, s->task->samples, s->task->classes,
                               s->width};
  return set;
}

/* Prototypes of the present embeddings, and the seeds; with `only_queries` those of the queries
 * alone, each for the sum of all losses. */
static int seeds(const session *s, int only_queries, float *loss) {
  const tt_protonet_set set = set_of(s);
  tt_protonet_options options = s->task->prototypes;
  if (only_queries) {
    options.through_prototypes = 0;
  }
  const int status = tt_protonet_prototypes(&set, s->prototypes);
  if (status != TT_OK) {
    return status;
  }
  *loss = (float)tt_protonet_seeds(&set, &options, s->prototypes, s->scratch, s->seeds);
  for (size_t k = 0; only_queries && k < (size_t)s->task->samples * s->width; k++) {
    s->seeds[k] *= (float)s->task->samples;
  }
  return TT_OK;
}

static int measure(session *s) {
  float loss;
  int status = TT_OK;
  if (s->seed != NULL) {
    status = embed(s, 0);
    status = status == TT_OK ? seeds(s, 1, &loss) : status;
  }
  status = status == TT_OK ? run(s, s->fisher_begin) : status;
  for (uint32_t i = 0; i < s->task->samples && status == TT_OK; i++) {
    put_target(s, i);
    status = run_sample(s, i, s->fisher, 1);
  }
  return status;
}

/* One pass over the samples; `store` as in `embed`, for a loss that does not couple them. */
static int train_samples(const session *s, int store, float *loss) {
  double sum = 0.0;
  for (uint32_t i = 0; i < s->task->samples; i++) {
    const int kept = i < s->cached;
    const tt_entry *const entry = !kept ? s->train : store ? s->train_store : s->train_cached;
    put_target(s, i);
    const int status = run_sample(s, i, entry, !kept || store);
    if (status != TT_OK) {
      return status;
    }
    if (s->loss != NULL) {
      float value;
      memcpy(&value, s->arena + s->loss->offset, sizeof value);
      sum += value;
    }
  }
  if (s->seed == NULL) {
    *loss = (float)(sum / s->task->samples);
  }
  return TT_OK;
}

static int train(session *s, tt_session_result *result) {
  int status = TT_OK;
  for (uint32_t iteration = 0; iteration < s->task->iterations && status == TT_OK; iteration++) {
    float loss = 0.0f;
    if (s->seed != NULL) {
      status = embed(s, iteration == 0);
      status = status == TT_OK ? seeds(s, 0, &loss) : status;
    }
    status = status == TT_OK ? train_samples(s, s->seed == NULL && iteration == 0, &loss) : status;
    status = status == TT_OK && s->apply != NULL ? run(s, s->apply) : status;
    result->last_loss = loss;
    result->first_loss = iteration == 0 ? loss : result->first_loss;
  }
  return status;
}

/* Prototypes of the trained network. */
static int conclude(const session *s) {
  if (s->seed == NULL) {
    return TT_OK;
  }
  const int status = embed(s, s->task->iterations == 0);
  const tt_protonet_set set = set_of(s);
  return status == TT_OK ? tt_protonet_prototypes(&set, s->prototypes) : status;
}

static void begin(const session *s) {
  float hyper[3];
  const uint32_t samples = s->task->samples;
  memcpy(hyper, s->arena + s->hyper->offset, sizeof hyper);
  hyper[0] = s->task->rate > 0.0f ? s->task->rate : hyper[0];
  hyper[1] = 0.0f; /* Adam's bias corrections, as before its first step */
  hyper[2] = 0.0f;
  put(s, s->hyper, hyper, sizeof hyper);
  memcpy(s->arena + s->options->offset + s->options->bytes - sizeof samples, &samples,
         sizeof samples);
}

static uint32_t count_layers(const session *s) {
  uint32_t layers = 0;
  for (uint32_t i = 0; i < 64; i++) {
    layers += plan_word(s, TT_PLAN_SELECTED + (i >> 5)) >> (i & 31) & 1;
  }
  return layers;
}

int tt_session_adapt(const tt_library *library, void *arena, const tt_session_task *task,
                     tt_session_result *result) {
  session s;
  memset(result, 0, sizeof *result);
  int status = find(&s, library, arena, task);
  status = status == TT_OK ? lay_out(&s, library) : status;
  if (status != TT_OK) {
    return status;
  }
  if (task->samples == 0) {
    return TT_ERR_BAD_VALUE;
  }
  begin(&s);
  status = run(&s, s.release);
  status = status == TT_OK ? measure(&s) : status;
  status = status == TT_OK ? run(&s, s.select) : status;
  if (status != TT_OK) {
    return status;
  }
  result->layers = count_layers(&s);
  if (result->layers != 0) {
    const uint32_t slots = plan_word(&s, s.plan->bytes / 4 - 1);
    s.cached = slots < task->samples ? slots : task->samples;
    result->cached = s.cached;
    status = train(&s, result);
  }
  return status == TT_OK ? conclude(&s) : status;
}

int tt_session_classify(const tt_library *library, void *arena, const tt_session_task *task,
                        uint32_t index, int32_t *label) {
  session s;
  int status = find(&s, library, arena, task);
  status = status == TT_OK ? lay_out(&s, library) : status;
  status = status == TT_OK ? put_sample(&s, index) : status;
  status = status == TT_OK ? run(&s, s.predict) : status;
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
