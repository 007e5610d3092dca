#include <stddef.h>
#include <string.h>

#include "check.h"
#include "tt_port.h"
#include "tt_server.h"

/* A library with one tensor of 12 bytes in the arena, one in flash, and an entry that counts its
 * calls. */
static int count_calls;
static int initialise(void *arena) {
  memset(arena, 7, 12);
  return TT_OK;
}
static int count_up(void *arena) {
  (void)arena;
  count_calls++;
  return count_calls == 3 ? TT_ERR_BAD_VALUE : TT_OK;
}
static const uint8_t constant[4] = {1, 2, 3, 4};
static const tt_tensor tensors[] = {
    {"state", TT_INT32, TT_ROLE_STATE, 1, 0, {3}, 12, 0, NULL},
    {"constant", TT_UINT8, TT_ROLE_CONST, 1, 0, {4}, 4, 0, constant},
};
static const tt_entry entries[] = {{"init", initialise}, {"count", count_up}};
static tt_library library = {"unit", "1", "00", 16, 4, 2, tensors, 2, entries};

static uint32_t stack[64];
void tt_port_stack(uint8_t **lower, uint8_t **upper) {
  *lower = (uint8_t *)stack;
  *upper = *lower + sizeof stack;
}
uint64_t tt_port_ticks(void) {
  static uint64_t ticks;
  return ticks += 5;
}
uint32_t tt_port_ticks_per_second(void) { return 1000; }
const char *tt_port_board(void) { return "unit"; }

static uint8_t reply[TT_FRAME_PAYLOAD + 16];
static uint32_t reply_length;
static int reply_count;
static tt_decoder decoder;
static void receive(const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    uint32_t length;
    if (tt_decoder_push(&decoder, bytes[i], &length) == TT_DECODE_FRAME) {
      reply_length = length;
      reply_count++;
    }
  }
}

static tt_server server;
static void to_server(const uint8_t *bytes, size_t count) { tt_server_feed(&server, bytes, count); }

static uint8_t request(uint8_t command, uint16_t id, const void *payload, uint32_t length) {
  uint8_t frame[TT_FRAME_PAYLOAD + 16] = {TT_FRAME_REQUEST, command, (uint8_t)id,
                                          (uint8_t)(id >> 8)};
  memcpy(frame + 4, payload, length);
  reply_count = 0;
  tt_frame_send(frame, 4 + length, to_server);
  if (reply_count == 0) {
    return 0xff;
  }
  CHECK(reply_count == 1 && reply[0] == TT_FRAME_REPLY);
  CHECK(tt_frame_payload(reply, reply_length) >= 0);
  CHECK((reply[2] | reply[3] << 8) == id);
  return reply[1];
}

static uint8_t request_words(uint8_t command, uint16_t id, uint32_t a, uint32_t b, uint32_t c) {
  uint8_t payload[12];
  tt_put_u32(payload, a);
  tt_put_u32(payload + 4, b);
  tt_put_u32(payload + 8, c);
  return request(command, id, payload, sizeof payload);
}

static void tensors_are_bounded(void) {
  CHECK(request_words(TT_CMD_READ, 11, 0, 4, 8) == TT_REPLY_OK);
  CHECK(reply_length == 16 && reply[4] == 7 && reply[11] == 7);
  CHECK(request_words(TT_CMD_READ, 12, 0, 4, 9) == TT_REPLY_RANGE);
  CHECK(request_words(TT_CMD_READ, 13, 0, 13, 0) == TT_REPLY_RANGE);
  CHECK(request_words(TT_CMD_READ, 14, 0, 0xfffffffcu, 8) == TT_REPLY_RANGE);
  CHECK(request_words(TT_CMD_READ, 15, 2, 0, 4) == TT_REPLY_NO_TENSOR);
  CHECK(request_words(TT_CMD_READ, 16, 1, 1, 2) == TT_REPLY_OK && reply[4] == 2);
  CHECK(request_words(TT_CMD_WRITE, 17, 0, 8, 0x01020304) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_WRITE, 18, 0, 9, 0) == TT_REPLY_RANGE);
  CHECK(request_words(TT_CMD_WRITE, 19, 1, 0, 0) == TT_REPLY_READ_ONLY);
  CHECK(request(TT_CMD_WRITE, 20, "1234567", 7) == TT_REPLY_BAD_LENGTH);
  CHECK(request_words(TT_CMD_READ, 21, 0, 8, 4) == TT_REPLY_OK && reply[4] == 4);
  uint32_t first = tensors[0].offset;
  CHECK(request_words(TT_CMD_READ, 22, TT_WHOLE_ARENA, first + 8, 4) == TT_REPLY_OK &&
        reply[4] == 4);
  CHECK(request_words(TT_CMD_READ, 23, TT_WHOLE_ARENA, 13, 4) == TT_REPLY_RANGE);
  CHECK(request_words(TT_CMD_WRITE, 24, TT_WHOLE_ARENA, first + 8, 0x05060708) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_READ, 25, 0, 8, 4) == TT_REPLY_OK && reply[4] == 8);
}

static void a_repeated_call_runs_once(void) {
  CHECK(request_words(TT_CMD_CALL, 30, 1, 1, 0) == TT_REPLY_OK && count_calls == 1);
  CHECK(request_words(TT_CMD_CALL, 30, 1, 1, 0) == TT_REPLY_OK && count_calls == 1);
  CHECK(tt_get_u32(reply + 4) == 0 && tt_get_u32(reply + 8) == 5);
  CHECK(request_words(TT_CMD_CALL, 31, 1, 5, 0) == TT_REPLY_OK && count_calls == 3);
  CHECK((int32_t)tt_get_u32(reply + 4) == TT_ERR_BAD_VALUE);
  CHECK(request_words(TT_CMD_CALL, 30, 1, 1, 0) == 0xff && count_calls == 3); /* late: no answer */
  CHECK(request_words(TT_CMD_CALL, 32, 2, 1, 0) == TT_REPLY_NO_ENTRY);
  CHECK(request_words(TT_CMD_SYNC, 5, 1234, 0, 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_CALL, 6, 1, 1, 0) == TT_REPLY_OK && count_calls == 4);
  CHECK(request_words(TT_CMD_SYNC, 2, 1234, 0, 0) == TT_REPLY_OK); /* a late copy changes nothing */
  CHECK(request_words(TT_CMD_CALL, 6, 1, 1, 0) == TT_REPLY_OK && count_calls == 4);
}

/* As after a lost reply. */
static void a_refused_call_is_refused_again(void) {
  CHECK(request_words(TT_CMD_SYNC, 50, 5678, 0, 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_CALL, 51, 1, 1, 0) == TT_REPLY_OK && count_calls == 5);
  CHECK(request_words(TT_CMD_CALL, 52, 99, 1, 0) == TT_REPLY_NO_ENTRY);
  CHECK(request_words(TT_CMD_CALL, 52, 99, 1, 0) == TT_REPLY_NO_ENTRY && reply_length == 8);
  CHECK(request(TT_CMD_CALL, 53, "1234567", 7) == TT_REPLY_BAD_LENGTH);
  CHECK(request(TT_CMD_CALL, 53, "1234567", 7) == TT_REPLY_BAD_LENGTH);
}

static void what_did_not_run_is_no_repetition(void) {
  const int before = count_calls;
  CHECK(request_words(TT_CMD_SYNC, 60, 91, 0, 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_CALL, 60, 1, 1, 0) == TT_REPLY_OK && count_calls == before + 1);
  CHECK(request_words(TT_CMD_CALL, 60, 1, 1, 0) == TT_REPLY_OK && count_calls == before + 1);
  CHECK(request_words(TT_CMD_READ, 61, 0, 0, 4) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_CALL, 61, 1, 1, 0) == TT_REPLY_OK && count_calls == before + 2);
  CHECK(request_words(TT_CMD_WRITE, 62, 0, 8, 0x01020304) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_SYNC, 63, 92, 0, 0) == TT_REPLY_OK);
  CHECK(request(TT_CMD_RESET, 63, "", 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_READ, 64, 0, 8, 4) == TT_REPLY_OK && reply[4] == 7);
}

/* A board that was started again would answer the session's requests from its initial weights. */
static void a_new_server_waits_for_a_session(void) {
  static uint32_t arena[8];
  const int before = count_calls;
  tt_server_init(&server, &library, (uint8_t *)arena, sizeof arena, receive);
  CHECK(request_words(TT_CMD_CALL, 7, 1, 1, 0) == TT_REPLY_NOT_SYNCED && count_calls == before);
  CHECK(request_words(TT_CMD_CALL, 7, 1, 1, 0) == TT_REPLY_NOT_SYNCED && count_calls == before);
  CHECK(request_words(TT_CMD_READ, 8, 0, 8, 4) == TT_REPLY_NOT_SYNCED && reply_length == 8);
  CHECK(request_words(TT_CMD_WRITE, 9, 0, 8, 1) == TT_REPLY_NOT_SYNCED);
  CHECK(request(TT_CMD_MEMORY, 10, "", 0) == TT_REPLY_NOT_SYNCED);
  CHECK(request(TT_CMD_RESET, 11, "", 0) == TT_REPLY_NOT_SYNCED);
  CHECK(request(TT_CMD_INFO, 12, "", 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_SYNC, 13, 94, 0, 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_READ, 14, 0, 8, 4) == TT_REPLY_OK && reply[4] == 7);
}

static void a_broken_library_is_not_run(void) {
  static tt_tensor outside;
  outside = tensors[0];
  outside.offset = 8; /* 8 + 12 > 16 */
  static uint32_t arena[8];
  tt_library broken = library;
  broken.tensors = &outside;
  broken.num_tensors = 1;
  tt_server_init(&server, &broken, (uint8_t *)arena, sizeof arena, receive);
  CHECK(server.init_status == TT_ERR_RANGE);
  CHECK(request_words(TT_CMD_SYNC, 0, 93, 0, 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_READ, 1, 0, 0, 4) == TT_REPLY_NOT_READY);
  broken = library;
  broken.arena_bytes = 40;
  tt_server_init(&server, &broken, (uint8_t *)arena, sizeof arena, receive);
  CHECK(server.init_status == TT_ERR_ARENA_SMALL);
}

int main(void) {
  static uint32_t arena[8];
  tt_decoder_init(&decoder, reply, sizeof reply);
  tt_server_init(&server, &library, (uint8_t *)arena, sizeof arena, receive);
  CHECK(server.init_status == TT_OK);
  CHECK(request(TT_CMD_ECHO, 9, "echo", 4) == TT_REPLY_OK && memcmp(reply + 4, "echo", 4) == 0);
  CHECK(request_words(TT_CMD_SYNC, 10, 77, 0, 0) == TT_REPLY_OK && tt_get_u32(reply + 4) == 77);
  tensors_are_bounded();
  CHECK(request(99, 26, "", 0) == TT_REPLY_BAD_COMMAND);
  CHECK(request(TT_CMD_INFO, 27, "", 0) == TT_REPLY_OK && tt_get_u32(reply + 12) == 16);
  CHECK(request_words(TT_CMD_TENSORS, 28, 1, 0, 0) == TT_REPLY_OK && tt_get_u32(reply + 4) == 1);
  CHECK(request_words(TT_CMD_ENTRIES, 28, 9, 0, 0) == TT_REPLY_OK && tt_get_u32(reply + 4) == 0);
  CHECK(request(TT_CMD_MEMORY, 29, "", 0) == TT_REPLY_OK && tt_get_u32(reply + 12) == 12);
  a_repeated_call_runs_once();
  a_refused_call_is_refused_again();
  what_did_not_run_is_no_repetition();
  CHECK(request(TT_CMD_RESET, 70, "", 0) == TT_REPLY_OK);
  CHECK(request_words(TT_CMD_READ, 71, 0, 8, 4) == TT_REPLY_OK && reply[4] == 7);
  CHECK(request(TT_CMD_EXIT, 72, "", 0) == TT_REPLY_OK && server.exiting);
  a_new_server_waits_for_a_session();
  a_broken_library_is_not_run();
  return 0;
}
