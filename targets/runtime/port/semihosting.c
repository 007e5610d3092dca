/* Emulated boards: the stream is two pipes that the emulator opens for us, the console is its
 * stderr. The command line is "name IN OUT". */
#include <string.h>

#include "../cortex_m/semihosting.h"
#include "tt_port.h"

static int32_t stream_in = -1;
static int32_t stream_out = -1;
static uint8_t pending[1024];
static size_t pending_count;

static int32_t open_stream(const char *name, uint32_t mode) {
  uint32_t block[3] = {(uint32_t)(uintptr_t)name, mode, (uint32_t)strlen(name)};
  return semi_call(SEMI_OPEN, block);
}

void tt_port_init(void) {
  static char line[160];
  uint32_t block[2] = {(uint32_t)(uintptr_t)line, sizeof line};
  char *in = NULL;
  char *out = NULL;
  if (semi_call(SEMI_GET_CMDLINE, block) == 0 && (in = strchr(line, ' ')) != NULL) {
    *in++ = '\0';
    if ((out = strchr(in, ' ')) != NULL) {
      *out++ = '\0';
      stream_in = open_stream(in, 1);   /* "rb" */
      stream_out = open_stream(out, 5); /* "wb" */
    }
  }
  if (stream_in < 0 || stream_out < 0) {
    tt_port_console("tt-fault: the emulator gave no streams\n");
    tt_port_exit(98);
  }
}

size_t tt_port_read(uint8_t *bytes, size_t max) {
  uint32_t block[3] = {(uint32_t)stream_in, (uint32_t)(uintptr_t)bytes, max};
  uint32_t missing = (uint32_t)semi_call(SEMI_READ, block);
  return missing > max ? 0 : max - missing;
}

void tt_port_flush(void) {
  uint32_t sent = 0;
  while (sent < pending_count) {
    uint32_t count = pending_count - sent;
    uint32_t block[3] = {(uint32_t)stream_out, (uint32_t)(uintptr_t)(pending + sent), count};
    uint32_t missing = (uint32_t)semi_call(SEMI_WRITE, block);
    if (missing >= count) {
      tt_port_exit(0); /* the host is gone */
    }
    sent += count - missing;
  }
  pending_count = 0;
}

void tt_port_write(const uint8_t *bytes, size_t count) {
  while (count > 0) {
    if (pending_count == sizeof pending) {
      tt_port_flush();
    }
    size_t room = sizeof pending - pending_count;
    size_t part = count < room ? count : room;
    memcpy(pending + pending_count, bytes, part);
    pending_count += part;
    bytes += part;
    count -= part;
  }
}

void tt_port_console(const char *text) { semi_call(SEMI_WRITE0, text); }

void tt_port_exit(int code) {
  uint32_t block[2] = {0x20026u, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
  for (;;) {
    semi_call(SEMI_EXIT_EXTENDED, block);
  }
}

/* An emulator's clocks say nothing about time: the host counts instructions instead. */
uint64_t tt_port_ticks(void) { return 0; }
uint32_t tt_port_ticks_per_second(void) { return 0; }
