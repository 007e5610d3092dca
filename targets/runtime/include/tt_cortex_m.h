/* What the parts of the Cortex-M start-up share: the linker's symbols and the board's memory map.
 */
#ifndef TT_CORTEX_M_H
#define TT_CORTEX_M_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef TT_BOARD_NAME
#error "define TT_BOARD_NAME, a string"
#endif

#define TT_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* Armv7-M and Armv8-M Mainline tell faults apart; Armv6-M has the hard fault only. */
#if __ARM_ARCH >= 7 && !defined(__ARM_ARCH_8M_BASE__)
#define TT_HAS_MAIN_FAULTS 1
#else
#define TT_HAS_MAIN_FAULTS 0
#endif

extern uint32_t tt_stack_lower[], tt_stack_upper[];
extern uint32_t tt_data_start[], tt_data_end[], tt_data_load[];
extern uint32_t tt_bss_start[], tt_bss_end[];

/* Armv7-M: an aligned region of a power of two bytes, whose eighths are off where `extent` has a 1.
 * Armv8-M: `extent` bytes from base on. */
typedef struct {
  uint32_t base;
  uint32_t log2_bytes;
  uint32_t access; /* tt_access */
  uint32_t extent;
} tt_mpu_region;

typedef enum {
  TT_ACCESS_CODE,
  TT_ACCESS_DATA,
  TT_ACCESS_DEVICE
} tt_access;

/* Nothing but the board's memories and peripherals can be reached afterwards; flash cannot be
 * written. */
void tt_mpu_enable(void);
void tt_mpu_disable(void);

/* Starts the cycle counter behind tt_port_ticks (ticks_systick.c). */
void tt_ticks_start(void);

#ifdef __cplusplus
}
#endif

#endif /* TT_CORTEX_M_H */
