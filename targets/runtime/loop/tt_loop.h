/* A program that trains without the host-driven server: single-letter commands over any byte
 * stream. For firmware that is handed an archive; the numbers are raw little-endian tensors of the
 * library.
 *
 *   p  input            -> status, output     "predict"
 *   t  label, input     -> status, loss       trains on one sample: "accumulate" where the library
 *                                             has it, else "step"
 *   u                   -> status             "apply" what was accumulated
 *   b                   -> status             "fisher_begin"
 *   f  label, input     -> status             "fisher", one sample
 *   s                   -> status             "select" by the Fisher potentials, and install
 *   n                   -> status             "release": a new task; what was selected and trained
 *                                             is gone, the rate stays
 *   r                   -> status             "init": everything that was learnt is gone
 *
 * status: int32, TT_OK or a tt_status; after an error nothing else follows. Several labels or
 * outputs follow each other in the order of the library's table. `label` is what the table has in
 * that role: a class number, the targets, or with the loss of prototypes "seed", the loss's
 * gradient by the outputs, which the other side makes of what `p` answered.
 *
 * A task: b, f for each sample, s; then again and again t for each sample and, where gradients are
 * accumulated, u. While something is selected, b and s are answered with TT_ERR_STATE. */
#ifndef TT_LOOP_H
#define TT_LOOP_H

#include "tinytrain.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Each moves exactly `count` bytes and returns 0, or anything else when the other side is gone. */
typedef int (*tt_loop_read)(uint8_t *bytes, uint32_t count);
typedef int (*tt_loop_write)(const uint8_t *bytes, uint32_t count);

/* Answers one command; returns 0, or 1 when the other side is gone. The arena has been given to
 * "init" before. A letter that the library has no entry for is answered with TT_ERR_NO_ENTRY. */
int tt_loop_once(const tt_library *library, unsigned char *arena, tt_loop_read read,
                 tt_loop_write write);

#ifdef __cplusplus
}
#endif

#endif /* TT_LOOP_H */
