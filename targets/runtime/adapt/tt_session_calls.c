#include "tt_session_calls.h"

#include <string.h>

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

/* One class number; a float32 label (MSE, binary cross-entropy) is none. */
static int is_class(const tt_tensor *label) {
  return label != NULL && label->dtype == TT_INT32 && label->bytes == sizeof(int32_t);
}

static int find(tt_session *s, const tt_library *library) {
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
  if (s->input == NULL || (s->seed == NULL && !is_class(s->label)) || s->output == NULL ||
      s->hyper == NULL || s->slot == NULL || s->plan == NULL || s->options == NULL) {
    return TT_ERR_NO_TENSOR;
  }
  if (s->seed != NULL && s->apply == NULL) { /* the prototypes are of all samples' embeddings */
    return TT_ERR_NO_ENTRY;
  }
  s->width = s->output->bytes / (uint32_t)sizeof(float);
  return TT_OK;
}

static int is_share(float value) { return value >= 0.0f && value <= 1.0f; }

static int check_augment(tt_session *s) {
  const tt_augment_options *const o = s->task->augment;
  const tt_tensor *const t = s->input;
  if (o == NULL) {
    return TT_OK;
  }
  if (t->dtype != TT_FLOAT32 || t->ndim != 4 || t->shape[0] != 1) {
    return TT_ERR_NO_IMAGE;
  }
  if (!is_share(o->probability) || !is_share(o->brightness) || !is_share(o->saturation) ||
      !is_share(o->contrast) || !is_share(o->translation) || !is_share(o->flip)) {
    return TT_ERR_BAD_VALUE;
  }
  s->shape.channels = t->shape[1];
  s->shape.height = t->shape[2];
  s->shape.width = t->shape[3];
  s->batch = s->task->seed;
  return TT_OK;
}

size_t tt_session_scratch_bytes(const tt_library *library, const tt_session_task *task) {
  const tt_tensor *const input = input_of(library);
  const tt_tensor *const output = tensor_of(library, "output");
  const size_t image = task->augment != NULL && input != NULL ? input->bytes : 0;
  if (tensor_of(library, "seed") == NULL || output == NULL) {
    return image;
  }
  const uint32_t width = output->bytes / (uint32_t)sizeof(float);
  return (size_t)task->classes * width * sizeof(double) +
         tt_protonet_scratch_bytes(task->classes, width) +
         2 * (size_t)task->samples * width * sizeof(float) + image;
}

/* Doubles first, so that all are aligned. */
static int lay_out(tt_session *s, const tt_library *library) {
  const tt_session_task *const task = s->task;
  unsigned char *at = (unsigned char *)task->scratch;
  if (task->scratch_bytes < tt_session_scratch_bytes(library, task)) {
    return TT_ERR_ARENA_SMALL;
  }
  if (s->seed != NULL) {
    s->prototypes = (double *)(void *)at;
    at += (size_t)task->classes * s->width * sizeof(double);
    s->scratch = at;
    at += tt_protonet_scratch_bytes(task->classes, s->width);
    s->embeddings = (float *)(void *)at;
    s->seeds = s->embeddings + (size_t)task->samples * s->width;
    at += 2 * (size_t)task->samples * s->width * sizeof(float);
  }
  s->image = (float *)(void *)at;
  return TT_OK;
}

int tt_session_open(tt_session *s, const tt_library *library, void *arena,
                    const tt_session_task *task) {
  memset(s, 0, sizeof *s);
  s->task = task;
  s->arena = (unsigned char *)arena;
  int status = find(s, library);
  status = status == TT_OK ? check_augment(s) : status;
  return status == TT_OK ? lay_out(s, library) : status;
}

int tt_session_run(const tt_session *s, const tt_entry *entry) {
  const tt_session_task *const task = s->task;
  return task->runner != NULL ? task->runner(task->context, entry, s->arena) : entry->run(s->arena);
}

void tt_session_put(const tt_session *s, const tt_tensor *tensor, const void *value, size_t bytes) {
  memcpy(s->arena + tensor->offset, value, bytes);
}

int tt_session_put_sample(const tt_session *s, uint32_t index) {
  return s->task->source(s->task->context, index, s->arena + s->input->offset, s->input->bytes);
}

int tt_session_run_sample(const tt_session *s, uint32_t index, const tt_entry *entry,
                          int reads_input) {
  const int status = reads_input ? tt_session_put_sample(s, index) : TT_OK;
  tt_session_put(s, s->slot, &index, sizeof index);
  return status == TT_OK ? tt_session_run(s, entry) : status;
}

int tt_session_run_query(tt_session *s, uint32_t index, const tt_entry *entry) {
  const tt_session_task *const task = s->task;
  float draws[TT_AUGMENT_DRAWS];
  const int status = task->source(task->context, index, s->image, s->input->bytes);
  if (status != TT_OK) {
    return status;
  }
  tt_augment_draw(&s->next, draws);
  tt_augment(task->augment, &s->shape, draws, s->image,
             (float *)(void *)(s->arena + s->input->offset));
  return tt_session_run(s, entry);
}

void tt_session_put_target(const tt_session *s, uint32_t index, const float *seeds) {
  if (s->seed == NULL) {
    tt_session_put(s, s->label, &s->task->labels[index], sizeof(int32_t));
  } else {
    tt_session_put(s, s->seed, seeds + (size_t)index * s->width, s->width * sizeof(float));
  }
}

uint32_t tt_session_plan_word(const tt_session *s, uint32_t index) {
  uint32_t word;
  memcpy(&word, s->arena + s->plan->offset + 4 * (size_t)index, sizeof word);
  return word;
}
