/* Random bytes, random frames and mutated good requests into the server, under sanitizers.
 *   fuzz_server COUNT SEED
 * Prints how many inputs gave how many replies; any finding of a sanitizer ends the program. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tt_fake.h"
#include "tt_frame.h"
#include "tt_port.h"
#include "tt_server.h"

static uint64_t state;
static unsigned long replies, good_replies, bad_bytes;
static uint8_t reply[TT_FRAME_PAYLOAD + 16];
static tt_decoder reply_decoder;
static uint8_t *stack_bytes;

static uint32_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)(state >> 16);
}

void tt_port_stack(uint8_t **lower, uint8_t **upper) {
  *lower = stack_bytes;
  *upper = stack_bytes + 256;
}
uint64_t tt_port_ticks(void) { return 0; }
uint32_t tt_port_ticks_per_second(void) { return 0; }
const char *tt_port_board(void) { return "fuzz"; }

/* What the server sends must be frames that decode. */
static void sink(const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    uint32_t length;
    tt_decode_result result = tt_decoder_push(&reply_decoder, bytes[i], &length);
    if (result == TT_DECODE_FRAME) {
      replies++;
      good_replies += tt_frame_payload(reply, length) >= 0;
    }
    bad_bytes += result == TT_DECODE_BAD;
  }
}

static size_t encoded_length;
static uint8_t encoded[2 * TT_FRAME_PAYLOAD + 64];
static void collect(const uint8_t *bytes, size_t count) {
  memcpy(encoded + encoded_length, bytes, count);
  encoded_length += count;
}

/* An argument that is often small, sometimes near a limit. */
static uint32_t argument(void) {
  switch (next() % 5) {
  case 0:
    return next() % 12;
  case 1:
    return next() % 3100;
  case 2:
    return 0xffffffffu - next() % 5;
  case 3:
    return 0x80000000u + next() % 9;
  default:
    return next();
  }
}

static void good_request(void) {
  static uint8_t frame[TT_FRAME_PAYLOAD + 16];
  uint32_t length = next() % 4 ? 12 : next() % (TT_FRAME_PAYLOAD + 1);
  frame[0] = next() % 16 ? TT_FRAME_REQUEST : (uint8_t)next();
  frame[1] = (uint8_t)(next() % 14);
  frame[2] = (uint8_t)next();
  frame[3] = next() % 4 ? 0 : (uint8_t)next();
  for (uint32_t i = 0; i < length; i++) {
    frame[4 + i] = (uint8_t)(next() % 3 ? next() : 0);
  }
  for (uint32_t i = 0; i + 4 <= length && i < 12; i += 4) {
    tt_put_u32(frame + 4 + i, argument());
  }
  /* Entries that are meant to hang or crash are not called, and none too often. */
  if (frame[1] == TT_CMD_CALL && length >= 8) {
    tt_put_u32(frame + 4, next() % 4 ? next() % 3 : 99);
    tt_put_u32(frame + 8, next() % 3);
  }
  if (frame[1] == TT_CMD_CALL && length < 8) {
    frame[1] = TT_CMD_ECHO;
  }
  tt_frame_send(frame, TT_FRAME_HEADER + length, collect);
}

static void mutate(void) {
  for (uint32_t i = next() % 4; i > 0 && encoded_length > 0; i--) {
    size_t at = next() % encoded_length;
    switch (next() % 3) {
    case 0:
      encoded[at] ^= (uint8_t)(1u << next() % 8);
      break;
    case 1:
      encoded_length = at;
      break;
    default:
      encoded[at] = 0;
    }
  }
}

int main(int argc, char **argv) {
  unsigned long count = argc > 1 ? strtoul(argv[1], NULL, 0) : 1000;
  state = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
  state = state * 0x9e3779b97f4a7c15ull + 1;
  uint8_t *arena = aligned_alloc(16, TT_FAKE_ARENA_BYTES + 256);
  tt_server *server = malloc(sizeof *server);
  stack_bytes = calloc(1, 256);
  tt_decoder_init(&reply_decoder, reply, sizeof reply);
  tt_server_init(server, &tt_fake_library, arena, TT_FAKE_ARENA_BYTES + 256, sink);
  for (unsigned long i = 0; i < count; i++) {
    encoded_length = 0;
    if (next() % 4 == 0) {
      encoded_length = next() % 300;
      for (size_t k = 0; k < encoded_length; k++) {
        encoded[k] = (uint8_t)(next() % 8 ? next() : next() % 3);
      }
    } else {
      good_request();
      if (next() % 2) {
        mutate();
      }
    }
    /* A copy of exactly that size: reading past its end is found. */
    uint8_t *copy = malloc(encoded_length ? encoded_length : 1);
    memcpy(copy, encoded, encoded_length);
    tt_server_feed(server, copy, encoded_length);
    free(copy);
  }
  printf("%lu inputs %lu replies %lu good %lu bad\n", count, replies, good_replies, bad_bytes);
  free(arena);
  free(server);
  free(stack_bytes);
  return good_replies == replies && bad_bytes == 0 ? 0 : 1;
}
