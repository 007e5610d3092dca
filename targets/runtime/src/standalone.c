#include "tt_standalone.h"

#include <string.h>

#include "tt_port.h"
#include "tt_server.h"

#define LINE 160
#define MOST_RUNS 48u
#define LONGEST_LOOP 8u

static char line[LINE];
static uint32_t line_length;
static uint32_t line_count;
static const tt_library *served;

/* What ran, as loops of runs: a loop is `length` runs from here on that were done `repeats` times,
 * a run is one entry `count` times. Only a loop's first run has a length. An iteration is a loop of
 * six runs at most, so the table holds any session. */
typedef struct {
  uint32_t count;
  uint32_t repeats;
  uint8_t entry;
  uint8_t length;
} run;

static run runs[MOST_RUNS];
static uint32_t run_count;
static run present; /* not in the table yet; its count is 0 before the first call */
static uint32_t call_count;

static void begin_line(const char *what) {
  static const char prefix[] = "tt-standalone: ";
  memcpy(line, prefix, sizeof prefix - 1);
  line_length = sizeof prefix - 1;
  while (*what != '\0') {
    line[line_length++] = *what++;
  }
}

static void end_line(void) {
  line[line_length++] = '\n';
  line[line_length] = '\0';
  line_count++;
  tt_port_console(line);
}

static void put_number(int64_t value) {
  char digits[20];
  uint32_t count = 0;
  uint64_t left = value < 0 ? (uint64_t)-value : (uint64_t)value;
  do {
    digits[count++] = (char)('0' + left % 10);
    left /= 10;
  } while (left != 0);
  line[line_length++] = ' ';
  if (value < 0) {
    line[line_length++] = '-';
  }
  while (count != 0) {
    line[line_length++] = digits[--count];
  }
}

/* Begins a new line of the same kind before the present one is full. */
static void put_in_lines(const char *what, int64_t value) {
  if (line_length > LINE - 24) {
    end_line();
    begin_line(what);
  }
  put_number(value);
}

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static int source(void *context, uint32_t index, void *input, uint32_t bytes) {
  const tt_standalone_task *const task = (const tt_standalone_task *)context;
  const uint8_t *const from = task->samples + (size_t)index * task->sample_values;
  if (bytes == task->sample_values) {
    memcpy(input, from, bytes);
    return TT_OK;
  }
  if (bytes != task->sample_values * sizeof(float)) {
    return TT_ERR_RANGE;
  }
  float *const to = (float *)input;
  for (uint32_t i = 0; i < task->sample_values; i++) {
    to[i] = task->scale * (float)from[i] + task->offset;
  }
  return TT_OK;
}

static int are_alike(const run *a, const run *b, uint32_t length) {
  for (uint32_t i = 0; i < length; i++) {
    if (a[i].entry != b[i].entry || a[i].count != b[i].count) {
      return 0;
    }
  }
  return 1;
}

static int are_single(const run *first, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    if (first[i].length != 1 || first[i].repeats != 1) {
      return 0;
    }
  }
  return 1;
}

/* Takes the last `length` runs away if they repeat what stands before them. */
static int fold(uint32_t length) {
  if (run_count < 2 * length) {
    return 0;
  }
  run *const last = runs + run_count - length;
  run *const before = last - length;
  const int is_loop = before->length == length;
  if (!are_single(last, length) || !are_alike(before, last, length) ||
      !(is_loop || are_single(before, length))) {
    return 0;
  }
  for (uint32_t i = 1; i < length; i++) {
    before[i].length = 0;
  }
  before->length = (uint8_t)length;
  before->repeats++;
  run_count -= length;
  return 1;
}

static void keep_present(void) {
  if (present.count == 0 || run_count == MOST_RUNS) {
    return; /* what is left out then shows in the number of calls */
  }
  runs[run_count++] = present;
  for (uint32_t length = 2; length <= LONGEST_LOOP; length++) {
    if (fold(length)) {
      return;
    }
  }
}

static void note_call(uint8_t entry) {
  call_count++;
  if (present.count != 0 && present.entry == entry) {
    present.count++;
    return;
  }
  keep_present();
  present.count = 1;
  present.repeats = 1;
  present.entry = entry;
  present.length = 1;
}

static int runner(void *context, const tt_entry *entry, void *arena) {
  (void)context;
  note_call((uint8_t)(entry - served->entries));
  tt_server_running = entry->name;
  tt_region_begin();
  const int status = entry->run(arena);
  tt_region_end();
  tt_server_running = NULL;
  return status;
}

/* The length of what is saved and its last four bytes, which are the CRC-32 of all before; a
 * product writes to flash here. (The CRC-32 of all, with its own CRC-32, is the same for any.) */
typedef struct {
  uint32_t crc;
  uint32_t bytes;
} saved;

static int sink(void *context, const void *bytes, size_t count) {
  saved *const to = (saved *)context;
  const uint8_t *const from = (const uint8_t *)bytes;
  for (size_t i = 0; i < count; i++) {
    to->crc = to->crc >> 8 | (uint32_t)from[i] << 24;
  }
  to->bytes += (uint32_t)count;
  return TT_OK;
}

static void classify(const tt_library *library, uint8_t *arena, const tt_session_task *task) {
  begin_line("labels");
  for (uint32_t i = 0; i < tt_standalone.queries; i++) {
    int32_t label = -1;
    if (tt_session_classify(library, arena, task, task->samples + i, &label) != TT_OK) {
      label = -1;
    }
    put_in_lines("labels", label);
  }
  end_line();
}

static void save(const uint8_t *arena) {
  saved to = {0, 0};
  const int status = tt_standalone.save_to(arena, sink, &to);
  begin_line("checkpoint");
  put_number(status);
  put_number(to.bytes);
  put_number(to.crc);
  end_line();
}

static void put_entries(void) {
  keep_present();
  begin_line("calls");
  put_number(call_count);
  end_line();
  for (uint32_t i = 0; i < run_count; i++) {
    if (runs[i].length != 0) {
      if (i != 0) {
        end_line();
      }
      begin_line("entries");
      put_number(runs[i].repeats);
    }
    put_number(runs[i].entry);
    put_number(runs[i].count);
  }
  if (run_count != 0) {
    end_line();
  }
}

void tt_standalone_run(const tt_library *library, uint8_t *arena) {
  const tt_session_task task = {source,
                                runner,
                                (void *)(uintptr_t)&tt_standalone,
                                tt_standalone.labels,
                                tt_standalone.support,
                                tt_standalone.classes,
                                tt_standalone.iterations,
                                tt_standalone.rate,
                                tt_standalone.prototypes,
                                tt_standalone.scratch,
                                tt_standalone.scratch_bytes,
                                tt_standalone.augment,
                                tt_standalone.seed,
                                tt_standalone.fisher_through_prototypes};
  tt_session_result result;
  served = library;
  const int status = tt_session_adapt(library, arena, &task, &result);
  begin_line("result");
  put_number(status);
  put_number(result.layers);
  put_number(result.cached);
  put_number(bits_of(result.first_loss));
  put_number(bits_of(result.last_loss));
  end_line();
  if (status == TT_OK) {
    classify(library, arena, &task);
    if (result.layers != 0) {
      save(arena);
    }
  }
  put_entries();
  begin_line("end");
  put_number(line_count);
  end_line();
}
