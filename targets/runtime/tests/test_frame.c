#include <string.h>

#include "check.h"
#include "tt_frame.h"

static uint8_t line[2048];
static size_t line_length;

static void collect(const uint8_t *bytes, size_t count) {
  memcpy(line + line_length, bytes, count);
  line_length += count;
}

/* Sends a frame of `length` bytes and decodes it again. */
static void round_trip(uint8_t fill, uint32_t length) {
  uint8_t frame[1024];
  uint8_t received[1024];
  uint32_t got = 0;
  int frames = 0;
  for (uint32_t i = 0; i < length; i++) {
    frame[i] = (uint8_t)(fill + (fill == 1 ? i : 0));
  }
  line_length = 0;
  tt_frame_send(frame, length, collect);
  CHECK(line[0] == 0 && line[line_length - 1] == 0);
  tt_decoder decoder;
  tt_decoder_init(&decoder, received, sizeof received);
  for (size_t i = 0; i < line_length; i++) {
    uint32_t now;
    tt_decode_result result = tt_decoder_push(&decoder, line[i], &now);
    CHECK(result != TT_DECODE_BAD);
    if (result == TT_DECODE_FRAME) {
      frames++;
      got = now;
    }
  }
  CHECK(frames == 1);
  CHECK(got == length + TT_FRAME_TRAILER);
  CHECK(memcmp(received, frame, got) == 0);
  CHECK(tt_frame_payload(received, got) == (int32_t)(length - TT_FRAME_HEADER));
  received[length / 2] ^= 4;
  CHECK(tt_frame_payload(received, got) == -1);
}

static void too_long_and_cut_frames(void) {
  uint8_t small[8];
  uint32_t length;
  tt_decoder decoder;
  tt_decoder_init(&decoder, small, sizeof small);
  for (int i = 0; i < 10000; i++) {
    CHECK(tt_decoder_push(&decoder, (uint8_t)(1 + i % 255), &length) == TT_DECODE_MORE);
  }
  CHECK(tt_decoder_push(&decoder, 0, &length) == TT_DECODE_BAD);
  CHECK(tt_decoder_push(&decoder, 0, &length) == TT_DECODE_MORE);
  CHECK(tt_decoder_push(&decoder, 5, &length) == TT_DECODE_MORE);
  CHECK(tt_decoder_push(&decoder, 0, &length) == TT_DECODE_BAD);
  CHECK(tt_decoder_push(&decoder, 1, &length) == TT_DECODE_MORE);
  CHECK(tt_decoder_push(&decoder, 0, &length) == TT_DECODE_FRAME && length == 0);
  CHECK(tt_frame_payload(small, 0) == -1);
  CHECK(tt_frame_payload(small, 7) == -1);
}

int main(void) {
  const uint8_t digits[] = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
  CHECK(tt_crc32(digits, sizeof digits) == 0xcbf43926u);
  CHECK(tt_crc32(digits, 0) == 0);
  for (uint32_t length = TT_FRAME_HEADER; length < 900; length++) {
    round_trip(0, length);
    round_trip(1, length);
    round_trip(7, length);
  }
  too_long_and_cut_frames();
  return 0;
}
