#include <string.h>

#include "check.h"
#include "tt_paint.h"

int main(void) {
  static uint32_t words[256];
  uint8_t *lower = (uint8_t *)words;
  uint8_t *upper = lower + sizeof words;
  tt_paint(lower, upper);
  CHECK(tt_painted_peak_from_below(lower, upper) == 0);
  CHECK(tt_painted_peak_from_above(lower, upper) == 0);
  CHECK(tt_painted_touched(lower, upper) == 0);
  lower[400] ^= 1;
  lower[803] ^= 0x80;
  CHECK(tt_painted_peak_from_below(lower, upper) == 804);
  CHECK(tt_painted_peak_from_above(lower, upper) == sizeof words - 400);
  CHECK(tt_painted_touched(lower, upper) == 8);
  /* Neither zeros nor a copy of painted memory from elsewhere pass for paint. */
  memset(lower, 0, 16);
  memcpy(lower + 16, lower + 500, 16);
  CHECK(tt_painted_touched(lower, upper) == 8 + 32);
  tt_paint(lower, upper);
  CHECK(tt_painted_touched(lower, upper) == 0);
  CHECK(tt_painted_peak_from_below(lower, lower) == 0);
  return 0;
}
