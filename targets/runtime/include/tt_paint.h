/* High-water marks: memory is filled with a pattern that depends on the address, and what differs
 * was used. */
#ifndef TT_PAINT_H
#define TT_PAINT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Both ends are multiples of four. */
void tt_paint(uint8_t *lower, uint8_t *upper);

/* Bytes from lower to the end of the last touched word. */
uint32_t tt_painted_peak_from_below(const uint8_t *lower, const uint8_t *upper);

/* Bytes from the first touched word to upper: a stack grows down. */
uint32_t tt_painted_peak_from_above(const uint8_t *lower, const uint8_t *upper);

/* Bytes in touched words. */
uint32_t tt_painted_touched(const uint8_t *lower, const uint8_t *upper);

#ifdef __cplusplus
}
#endif

#endif /* TT_PAINT_H */
