/* Semihosting calls: the processor stops at a breakpoint and the debugger, or the emulator, acts
 * for it. */
#ifndef TT_SEMIHOSTING_H
#define TT_SEMIHOSTING_H

#include <stdint.h>

enum {
  SEMI_OPEN = 0x01,
  SEMI_WRITE0 = 0x04,
  SEMI_WRITE = 0x05,
  SEMI_READ = 0x06,
  SEMI_GET_CMDLINE = 0x15,
  SEMI_EXIT_EXTENDED = 0x20
};

static inline int32_t semi_call(int32_t operation, const void *argument) {
  register int32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

#endif /* TT_SEMIHOSTING_H */
