/* Runs the session of a standalone task on this machine, with as much scratch as it asks for and no
 * byte more, and writes what it did: entries and results as lines, what every entry read to a file.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tt_standalone.h"
#include LIBRARY_HEADER

static FILE *inputs;

static const tt_tensor *named(const tt_library *library, const char *name) {
  for (uint32_t i = 0; i < library->num_tensors; i++) {
    if (strcmp(library->tensors[i].name, name) == 0) {
      return &library->tensors[i];
    }
  }
  abort();
}

static int source(void *context, uint32_t index, void *input, uint32_t bytes) {
  (void)context;
  if (bytes != tt_standalone.sample_values * sizeof(float)) {
    return TT_ERR_RANGE;
  }
  for (uint32_t i = 0; i < tt_standalone.sample_values; i++) {
    const float value = tt_standalone.samples[(size_t)index * tt_standalone.sample_values + i];
    ((float *)input)[i] = tt_standalone.scale * value + tt_standalone.offset;
  }
  return TT_OK;
}

static int no_source(void *context, uint32_t index, void *input, uint32_t bytes) {
  (void)context, (void)index, (void)input, (void)bytes;
  return TT_ERR_STATE;
}

/* The learning rate that the library would train by now. */
static void print_rate(const char *when, const tt_library *library, const unsigned char *arena) {
  float rate;
  memcpy(&rate, arena + named(library, "hyper")->offset, sizeof rate);
  printf("%s %a\n", when, (double)rate);
}

static int runner(void *context, const tt_entry *entry, void *arena) {
  const tt_tensor *const input = (const tt_tensor *)context;
  printf("entry %s\n", entry->name);
  fwrite((unsigned char *)arena + input->offset, 1, input->bytes, inputs);
  return entry->run(arena);
}

int main(int argc, char **argv) {
  const tt_library *const library = &LIBRARY;
  tt_session_task task = {0};
  tt_session_result result;
  inputs = argc > 1 ? fopen(argv[1], "wb") : NULL;
  unsigned char *const arena = (unsigned char *)aligned_alloc(
      library->arena_align, (library->arena_bytes + library->arena_align - 1) /
                                library->arena_align * library->arena_align);
  if (inputs == NULL || arena == NULL || INIT(arena, library->arena_bytes) != TT_OK) {
    return 1;
  }
  task.source = source;
  task.runner = runner;
  task.context = (void *)(uintptr_t)named(library, INPUT);
  task.labels = tt_standalone.labels;
  task.samples = tt_standalone.support;
  task.classes = tt_standalone.classes;
  task.iterations = tt_standalone.iterations;
  task.rate = tt_standalone.rate;
  task.prototypes = tt_standalone.prototypes;
  task.augment = tt_standalone.augment;
  task.seed = tt_standalone.seed;
  task.fisher_through_prototypes = tt_standalone.fisher_through_prototypes;
  task.scratch_bytes = tt_session_scratch_bytes(library, &task);
  task.scratch = malloc(task.scratch_bytes + 1); /* never of size 0 */
  printf("scratch %zu %zu\n", task.scratch_bytes, tt_standalone.scratch_bytes);
  print_rate("before", library, arena);
  const int status = tt_session_adapt(library, arena, &task, &result);
  print_rate("after", library, arena);
  printf("result %d %u %u %a %a\n", status, result.layers, result.cached, (double)result.first_loss,
         (double)result.last_loss);
  for (uint32_t i = 0; i < tt_standalone.queries && status == TT_OK; i++) {
    int32_t label;
    if (tt_session_classify(library, arena, &task, task.samples + i, &label) != TT_OK) {
      return 1;
    }
    printf("label %d\n", (int)label);
  }
  const tt_tensor *const plan = named(library, "plan");
  fwrite(arena + plan->offset, 1, plan->bytes, inputs);
  fclose(inputs);

  /* What is refused, with a name. */
  tt_augment_options wrong = TT_AUGMENT_DEFAULTS;
  wrong.translation = 1.5f;
  task.augment = &wrong;
  printf("wrong %d\n", tt_session_adapt(library, arena, &task, &result));
  task.augment = &TT_AUGMENT_DEFAULTS;
  task.scratch_bytes = tt_session_scratch_bytes(library, &task) - 1;
  printf("small %d\n", tt_session_adapt(library, arena, &task, &result));
  tt_library flat = *library;
  tt_tensor *const tensors = malloc(library->num_tensors * sizeof *tensors);
  memcpy(tensors, library->tensors, library->num_tensors * sizeof *tensors);
  tensors[named(library, INPUT) - library->tensors].ndim = 2;
  flat.tensors = tensors;
  task.scratch_bytes++;
  printf("flat %d\n", tt_session_adapt(&flat, arena, &task, &result));
  free(tensors);
  task.runner = NULL;
  task.source = no_source;
  const float rates[] = {-0.5f, NAN, INFINITY};
  for (size_t i = 0; i < sizeof rates / sizeof *rates; i++) {
    task.rate = rates[i];
    printf("rate %d\n", tt_session_adapt(library, arena, &task, &result));
  }
  task.rate = tt_standalone.rate;
  int32_t *const labels = malloc(task.samples * sizeof *labels);
  const int32_t outside[] = {-1, (int32_t)task.classes, (int32_t)task.classes - 1};
  task.labels = labels;
  for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
    memcpy(labels, tt_standalone.labels, task.samples * sizeof *labels);
    labels[task.samples - 1] = outside[i];
    printf("outside %d\n", tt_session_adapt(library, arena, &task, &result));
  }
  task.classes--;
  printf("outside %d\n", tt_session_adapt(library, arena, &task, &result));
  print_rate("end", library, arena);
  free(labels);
  free(task.scratch);
  free(arena);
  return 0;
}
