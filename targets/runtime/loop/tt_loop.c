#include "tt_loop.h"

#include <string.h>

#define NO_ROLE (-1)

typedef struct {
  char letter;
  const char *entry;
  int labelled; /* label and input come first; 0: nothing; 2: the input only */
  int answer;   /* role of the tensors that follow the status */
} command;

/* A letter means the first entry here that the library has: one with "accumulate" may have "step"
 * too, which updates at once. */
static const command commands[] = {
    {'p', "predict", 2, TT_ROLE_OUTPUT}, {'t', "accumulate", 1, TT_ROLE_LOSS},
    {'t', "step", 1, TT_ROLE_LOSS},      {'u', "apply", 0, NO_ROLE},
    {'b', "fisher_begin", 0, NO_ROLE},   {'f', "fisher", 1, NO_ROLE},
    {'s', "select", 0, NO_ROLE},         {'n', "release", 0, NO_ROLE},
    {'r', "init", 0, NO_ROLE},
};

static const tt_entry *find_entry(const tt_library *library, const char *name) {
  for (uint32_t i = 0; i < library->num_entries; i++) {
    if (strcmp(library->entries[i].name, name) == 0) {
      return &library->entries[i];
    }
  }
  return NULL;
}

static const command *find_command(const tt_library *library, char letter) {
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
    if (commands[i].letter == letter && find_entry(library, commands[i].entry) != NULL) {
      return &commands[i];
    }
  }
  return NULL;
}

static int receive(const tt_library *library, unsigned char *arena, int role, tt_loop_read read) {
  for (uint32_t i = 0; i < library->num_tensors; i++) {
    const tt_tensor *tensor = &library->tensors[i];
    if (tensor->role == role && tensor->data == NULL &&
        read(arena + tensor->offset, tensor->bytes) != 0) {
      return 1;
    }
  }
  return 0;
}

static int answer(const tt_library *library, const unsigned char *arena, int role,
                  tt_loop_write write) {
  for (uint32_t i = 0; i < library->num_tensors; i++) {
    const tt_tensor *tensor = &library->tensors[i];
    if (tensor->role == role && tensor->data == NULL &&
        write(arena + tensor->offset, tensor->bytes) != 0) {
      return 1;
    }
  }
  return 0;
}

int tt_loop_once(const tt_library *library, unsigned char *arena, tt_loop_read read,
                 tt_loop_write write) {
  uint8_t letter = 0;
  if (read(&letter, 1) != 0) {
    return 1;
  }
  const command *found = find_command(library, (char)letter);
  int32_t status = TT_ERR_NO_ENTRY;
  if (found != NULL) {
    if ((found->labelled == 1 && receive(library, arena, TT_ROLE_LABEL, read) != 0) ||
        (found->labelled != 0 && receive(library, arena, TT_ROLE_INPUT, read) != 0)) {
      return 1;
    }
    status = find_entry(library, found->entry)->run(arena);
  }
  uint32_t bits = (uint32_t)status;
  const uint8_t bytes[4] = {(uint8_t)bits, (uint8_t)(bits >> 8), (uint8_t)(bits >> 16),
                            (uint8_t)(bits >> 24)};
  if (write(bytes, sizeof bytes) != 0) {
    return 1;
  }
  return status == TT_OK && found->answer != NO_ROLE ? answer(library, arena, found->answer, write)
                                                     : 0;
}
