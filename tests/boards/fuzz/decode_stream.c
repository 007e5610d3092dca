/* Decodes streams with the C parser, for a comparison with the Python one.
 * Input: u32 length, then that many bytes, again and again. Output for each: one line with a word
 * for each event: the frame's bytes in hexadecimal (without its CRC), or "bad". */
#include <stdio.h>
#include <stdlib.h>

#include "tt_frame.h"

int main(void) {
  uint8_t head[4];
  uint8_t *buffer = malloc(CAPACITY);
  while (fread(head, 1, 4, stdin) == 4) {
    tt_decoder decoder;
    tt_decoder_init(&decoder, buffer, CAPACITY);
    for (uint32_t left = tt_get_u32(head); left > 0; left--) {
      int byte = getchar();
      uint32_t length;
      if (byte == EOF) {
        return 1;
      }
      tt_decode_result result = tt_decoder_push(&decoder, (uint8_t)byte, &length);
      if (result == TT_DECODE_FRAME && tt_frame_payload(buffer, length) >= 0) {
        for (uint32_t i = 0; i + 4 < length; i++) {
          printf("%02x", buffer[i]);
        }
        printf(" ");
      } else if (result != TT_DECODE_MORE) {
        printf("bad ");
      }
    }
    printf("\n");
  }
  free(buffer);
  return 0;
}
