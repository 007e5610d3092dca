/* A row table with its plan and arena, driven by commands on stdin: a process of its own, so that
 * the sanitizers can watch. Buffers are allocated with exactly the bytes that they may have.
 *
 * First the table, in words: candidates, tensors, arena bytes; channels; activation bytes;
 * candidate, kind and row bytes of each tensor, and for TT_ROWS_COPY its flash rows; 16 bytes of
 * digest. Then commands of one byte and a word n: i  install a bit map of n bytes        -> status
 *   r  release                             -> 0
 *   g  -> 0, the plan's words, the arena
 *   p  n bytes replace the arena           -> 0
 *   z  -> size of a checkpoint
 *   w  write with n bytes of room          -> status, bytes written
 *   s  save to a sink that fails behind n  -> status, bytes that it took, those bytes
 *   c  check n bytes                       -> status
 *   l  load n bytes                        -> status */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tt_checkpoint.h"

enum {
  SINK_FULL = 77
};

static tt_rows_table table;
static uint32_t *plan;
static unsigned char *arena;
static char digest[TT_CHECKPOINT_DIGEST + 1];

static void need(void *to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) {
    exit(3);
  }
}

static uint32_t word(void) {
  uint32_t value;
  need(&value, sizeof value);
  return value;
}

static void say(const void *from, size_t bytes) { fwrite(from, 1, bytes, stdout); }

static void say_word(int64_t value) {
  const int32_t narrow = (int32_t)value;
  say(&narrow, sizeof narrow);
}

static void *exactly(size_t bytes) {
  void *const found = malloc(bytes);
  if (found == NULL) {
    exit(4);
  }
  return found;
}

static unsigned char *received(size_t bytes) {
  unsigned char *const found = exactly(bytes);
  need(found, bytes);
  return found;
}

static void read_table(void) {
  table.num_candidates = word();
  table.num_tensors = word();
  table.arena_bytes = word();
  uint16_t *const channels = exactly(table.num_candidates * sizeof *channels);
  for (uint32_t c = 0; c < table.num_candidates; c++) {
    channels[c] = (uint16_t)word();
  }
  table.channels = channels;
  table.activation_bytes = (uint32_t *)(void *)received((table.num_candidates + 1) * 4u);
  uint32_t *const slot_bytes = exactly(2 * table.num_candidates * sizeof *slot_bytes);
  memset(slot_bytes, 0, 2 * table.num_candidates * sizeof *slot_bytes);
  table.slot_bytes = slot_bytes;
  tt_row_tensor *const tensors = exactly(table.num_tensors * sizeof *tensors);
  for (uint32_t t = 0; t < table.num_tensors; t++) {
    tensors[t].candidate = (uint16_t)word();
    tensors[t].kind = (uint16_t)word();
    tensors[t].row_bytes = word();
    tensors[t].source = NULL;
    if (tensors[t].kind == TT_ROWS_COPY) {
      tensors[t].source = received((size_t)channels[tensors[t].candidate] * tensors[t].row_bytes);
    }
  }
  table.tensors = tensors;
  need(digest, TT_CHECKPOINT_DIGEST);
  plan = exactly(tt_rows_plan_words(&table) * sizeof *plan);
  arena = exactly(table.arena_bytes);
  memset(arena, 0xa5, table.arena_bytes);
  tt_rows_clear(&table, plan);
}

typedef struct {
  unsigned char *bytes;
  size_t count;
  size_t room;
} bucket;

static int pour(void *context, const void *bytes, size_t count) {
  bucket *const to = (bucket *)context;
  if (count > to->room - to->count) {
    return SINK_FULL;
  }
  memcpy(to->bytes + to->count, bytes, count);
  to->count += count;
  return TT_OK;
}

static void obey(char command, uint32_t n) {
  if (command == 'i') {
    unsigned char *const bitmap = received(n);
    say_word(tt_rows_install(&table, plan, bitmap, arena));
    free(bitmap);
  } else if (command == 'r') {
    tt_rows_clear(&table, plan);
    say_word(0);
  } else if (command == 'g') {
    say_word(0);
    say(plan, tt_rows_plan_words(&table) * sizeof *plan);
    say(arena, table.arena_bytes);
  } else if (command == 'p') {
    need(arena, n);
    say_word(0);
  } else if (command == 'z') {
    say_word((int64_t)tt_checkpoint_size(&table, plan));
  } else if (command == 'w') {
    unsigned char *const buffer = exactly(n);
    const int status = tt_checkpoint_write(&table, digest, plan, arena, buffer, n);
    say_word(status);
    say_word(status == TT_OK ? (int64_t)tt_checkpoint_size(&table, plan) : 0);
    say(buffer, status == TT_OK ? tt_checkpoint_size(&table, plan) : 0);
    free(buffer);
  } else if (command == 's') {
    bucket to = {exactly(n), 0, n};
    say_word(tt_checkpoint_save(&table, digest, plan, arena, pour, &to));
    say_word((int64_t)to.count);
    say(to.bytes, to.count);
    free(to.bytes);
  } else {
    unsigned char *const bytes = received(n);
    say_word(command == 'c' ? tt_checkpoint_check(&table, digest, bytes, n)
                            : tt_checkpoint_load(&table, digest, bytes, n, plan, arena));
    free(bytes);
  }
  fflush(stdout);
}

static void release_all(void) {
  for (uint32_t t = 0; t < table.num_tensors; t++) {
    free((void *)(uintptr_t)table.tensors[t].source);
  }
  free((void *)(uintptr_t)table.tensors);
  free((void *)(uintptr_t)table.activation_bytes);
  free((void *)(uintptr_t)table.channels);
  free(plan);
  free(arena);
}

int main(void) {
  read_table();
  for (int command = getchar(); command != EOF; command = getchar()) {
    obey((char)command, word());
  }
  release_all();
  return 0;
}
