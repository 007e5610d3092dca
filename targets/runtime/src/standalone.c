#include "tt_standalone.h"

#include <string.h>

#include "tt_port.h"
#include "tt_server.h"

#define LINE 120
#define MOST_CALLS 16384u

static char line[LINE];
static uint32_t line_length;
static const tt_library *served;
static uint8_t calls[MOST_CALLS];
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

static int runner(void *context, const tt_entry *entry, void *arena) {
  (void)context;
  if (call_count < MOST_CALLS) {
    calls[call_count++] = (uint8_t)(entry - served->entries);
  }
  tt_server_running = entry->name;
  tt_region_begin();
  const int status = entry->run(arena);
  tt_region_end();
  tt_server_running = NULL;
  return status;
}

/* CRC-32 (IEEE) of what is saved, and its length; a product writes to flash here. */
typedef struct {
  uint32_t crc;
  uint32_t bytes;
} saved;

static int sink(void *context, const void *bytes, size_t count) {
  saved *const to = (saved *)context;
  const uint8_t *const from = (const uint8_t *)bytes;
  for (size_t i = 0; i < count; i++) {
    to->crc ^= from[i];
    for (int bit = 0; bit < 8; bit++) {
      to->crc = to->crc >> 1 ^ (0xedb88320u & (0u - (to->crc & 1u)));
    }
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
  saved to = {UINT32_MAX, 0};
  const int status = tt_standalone.save_to(arena, sink, &to);
  begin_line("checkpoint");
  put_number(status);
  put_number(to.bytes);
  put_number(to.crc ^ UINT32_MAX);
  end_line();
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
    save(arena);
  }
  begin_line("entries");
  for (uint32_t i = 0; i < call_count; i++) {
    put_in_lines("entries", calls[i]);
  }
  end_line();
}
