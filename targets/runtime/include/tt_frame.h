/* Frames on a byte stream: COBS with a zero byte before and after, CRC-32 (IEEE) at the end.
 *
 *   0x00  COBS( kind | code | id, 16 bits | payload | CRC-32 of all before )  0x00
 *
 * All numbers are little-endian. kind is TT_FRAME_REQUEST or TT_FRAME_REPLY; code is a command in a
 * request and a status in a reply. */
#ifndef TT_FRAME_H
#define TT_FRAME_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TT_FRAME_REQUEST 0x01u
#define TT_FRAME_REPLY 0x81u
#define TT_FRAME_HEADER 4u
#define TT_FRAME_TRAILER 4u

typedef enum {
  TT_DECODE_MORE = 0,
  TT_DECODE_FRAME = 1,
  TT_DECODE_BAD = -1
} tt_decode_result;

/* Decodes COBS byte by byte into a buffer of fixed capacity; any input is allowed. */
typedef struct {
  uint8_t *buffer;
  uint32_t capacity;
  uint32_t length; /* of the decoded bytes so far */
  uint8_t code;    /* of the current block */
  uint8_t left;    /* bytes to come in the current block */
  uint8_t started; /* a byte came since the last delimiter */
  uint8_t broken;  /* too long: skip to the next delimiter */
} tt_decoder;

void tt_decoder_init(tt_decoder *decoder, uint8_t *buffer, uint32_t capacity);

/* After TT_DECODE_FRAME, buffer[0 .. *length) is a frame whose CRC is not yet checked. */
tt_decode_result tt_decoder_push(tt_decoder *decoder, uint8_t byte, uint32_t *length);

/* The payload's length, or -1 when the frame is too short or its CRC is wrong. */
int32_t tt_frame_payload(const uint8_t *frame, uint32_t length);

/* Writes the CRC behind frame[0 .. length), then sends it all. frame has room for TT_FRAME_TRAILER
 * more. */
typedef void (*tt_sink)(const uint8_t *bytes, size_t count);
void tt_frame_send(uint8_t *frame, uint32_t length, tt_sink sink);

uint32_t tt_crc32(const uint8_t *bytes, size_t count);

static inline uint32_t tt_get_u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline void tt_put_u32(uint8_t *p, uint32_t value) {
  p[0] = (uint8_t)value;
  p[1] = (uint8_t)(value >> 8);
  p[2] = (uint8_t)(value >> 16);
  p[3] = (uint8_t)(value >> 24);
}

#ifdef __cplusplus
}
#endif

#endif /* TT_FRAME_H */
