#include "tt_frame.h"

uint32_t tt_crc32(const uint8_t *bytes, size_t count) {
  /* Half a byte at a time: 64 bytes of table are a good trade on a microcontroller. */
  static const uint32_t table[16] = {0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu,
                                     0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
                                     0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu,
                                     0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu};
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < count; i++) {
    crc ^= bytes[i];
    crc = (crc >> 4) ^ table[crc & 15u];
    crc = (crc >> 4) ^ table[crc & 15u];
  }
  return ~crc;
}

static void restart(tt_decoder *decoder) {
  decoder->length = 0;
  decoder->code = 0;
  decoder->left = 0;
  decoder->started = 0;
  decoder->broken = 0;
}

void tt_decoder_init(tt_decoder *decoder, uint8_t *buffer, uint32_t capacity) {
  decoder->buffer = buffer;
  decoder->capacity = capacity;
  restart(decoder);
}

static void append(tt_decoder *decoder, uint8_t byte) {
  if (decoder->length == decoder->capacity) {
    decoder->broken = 1;
    return;
  }
  decoder->buffer[decoder->length++] = byte;
}

tt_decode_result tt_decoder_push(tt_decoder *decoder, uint8_t byte, uint32_t *length) {
  if (byte == 0) {
    tt_decode_result result = TT_DECODE_FRAME;
    if (!decoder->started) {
      result = TT_DECODE_MORE; /* two delimiters in a row */
    } else if (decoder->broken || decoder->left != 0) {
      result = TT_DECODE_BAD;
    }
    *length = decoder->length;
    restart(decoder);
    return result;
  }
  if (decoder->left != 0) {
    decoder->left--;
    if (!decoder->broken) {
      append(decoder, byte);
    }
    return TT_DECODE_MORE;
  }
  /* A block's first byte: the block before it ends in a zero, unless it was a full one. */
  if (decoder->started && decoder->code != 0xff && !decoder->broken) {
    append(decoder, 0);
  }
  decoder->started = 1;
  decoder->code = byte;
  decoder->left = (uint8_t)(byte - 1u);
  return TT_DECODE_MORE;
}

int32_t tt_frame_payload(const uint8_t *frame, uint32_t length) {
  if (length < TT_FRAME_HEADER + TT_FRAME_TRAILER) {
    return -1;
  }
  uint32_t covered = length - TT_FRAME_TRAILER;
  if (tt_crc32(frame, covered) != tt_get_u32(frame + covered)) {
    return -1;
  }
  return (int32_t)(covered - TT_FRAME_HEADER);
}

void tt_frame_send(uint8_t *frame, uint32_t length, tt_sink sink) {
  static const uint8_t delimiter = 0;
  tt_put_u32(frame + length, tt_crc32(frame, length));
  length += TT_FRAME_TRAILER;
  sink(&delimiter, 1);
  for (uint32_t start = 0;;) {
    uint32_t run = 0;
    while (run < 254 && start + run < length && frame[start + run] != 0) {
      run++;
    }
    uint8_t code = (uint8_t)(run + 1u);
    sink(&code, 1);
    sink(frame + start, run);
    start += run;
    if (start == length) {
      break;
    }
    if (run < 254) {
      start++; /* the zero that the block's end stands for */
    }
  }
  sink(&delimiter, 1);
}
