/* Runs a library in an arena of exactly its size, on the heap, so that the address sanitizer sees
 * every byte beside it. Compiled with -DLIBRARY=tt_<name>_library -DHEADER="tt_<name>.h". Prints
 * losses and outputs as hexadecimal floats. */
#include HEADER

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t state = 1;

static float next(void) {
  state = state * 1664525u + 1013904223u;
  return (float)(state >> 8) / 8388608.0f - 1.0f;
}

static const tt_library *const library = &LIBRARY;

static int call(const char *name, void *arena) {
  for (uint32_t i = 0; i < library->num_entries; ++i) {
    if (strcmp(library->entries[i].name, name) == 0) {
      return library->entries[i].run(arena);
    }
  }
  return TT_ERR_NO_ENTRY;
}

static const tt_tensor *find(tt_role role) {
  for (uint32_t i = 0; i < library->num_tensors; ++i) {
    if (library->tensors[i].role == role) {
      return &library->tensors[i];
    }
  }
  return NULL;
}

static void write_sample(unsigned char *arena, int32_t label) {
  const tt_tensor *x = find(TT_ROLE_INPUT), *y = find(TT_ROLE_LABEL);
  for (uint32_t i = 0; i < x->bytes / 4; ++i) {
    const float value = 3.0f * next();
    memcpy(arena + x->offset + 4 * i, &value, 4);
  }
  memcpy(arena + y->offset, &label, 4);
}

static void show(const unsigned char *arena, const tt_tensor *t) {
  for (uint32_t i = 0; i < t->bytes / 4; ++i) {
    float value;
    memcpy(&value, arena + t->offset + 4 * i, 4);
    printf("%s %a\n", t->name, (double)value);
  }
}

static int train(unsigned char *arena, int fill) {
  memset(arena, fill, library->arena_bytes);
  state = 1;
  int code = call("init", arena);
  for (int step = 0; step < 3 && code == 0; ++step) {
    const char *const entry = call("apply", arena) == TT_ERR_NO_ENTRY ? "step" : "accumulate";
    write_sample(arena, step % 3);
    code = call(entry, arena);
    show(arena, find(TT_ROLE_LOSS));
  }
  write_sample(arena, 0);
  code = code != 0 ? code : call("predict", arena);
  show(arena, find(TT_ROLE_OUTPUT));
  for (uint32_t i = 0; i < library->num_tensors; ++i) {
    if (library->tensors[i].role == TT_ROLE_PARAM) {
      show(arena, &library->tensors[i]);
    }
  }
  return code;
}

int main(int argc, char **argv) {
  const int fill = argc > 1 ? atoi(argv[1]) : 0;
  unsigned char *arena = malloc(library->arena_bytes);
  int code = arena == NULL ? 100 : train(arena, fill);
  if (code == 0) { /* a label out of range is refused and changes nothing */
    unsigned char *copy = malloc(library->arena_bytes);
    write_sample(arena, 1000000);
    memcpy(copy, arena, library->arena_bytes);
    const char *const entry = call("apply", arena) == TT_ERR_NO_ENTRY ? "step" : "accumulate";
    memcpy(arena, copy, library->arena_bytes);
    code = call(entry, arena) == TT_ERR_BAD_VALUE && memcmp(arena, copy, library->arena_bytes) == 0
               ? 0
               : 101;
    free(copy);
  }
  free(arena);
  return code;
}
