/* Start-up of a Cortex-M: vectors, FPU, memory, stack paint, MPU, then the server. */
#include <stdint.h>

#include "tt_cortex_m.h"
#include "tt_paint.h"
#include "tt_port.h"
#include "tt_server.h"

typedef union {
  void (*handler)(void);
  const void *stack;
} tt_vector;

void tt_reset_handler(void);
void tt_systick_handler(void) __attribute__((weak, alias("tt_unexpected_handler")));
void tt_unexpected_handler(void);
void tt_fault_handler(void);
void tt_start(void);

__attribute__((section(".vectors"), used)) const tt_vector tt_vectors[16] = {
    {.stack = tt_stack_upper},
    {.handler = tt_reset_handler},
    {.handler = tt_fault_handler}, /* NMI */
    {.handler = tt_fault_handler}, /* hard fault */
    {.handler = tt_fault_handler}, /* memory management */
    {.handler = tt_fault_handler}, /* bus */
    {.handler = tt_fault_handler}, /* usage */
    {.handler = tt_fault_handler}, /* secure */
    {.stack = 0},
    {.stack = 0},
    {.stack = 0},
    {.handler = tt_fault_handler}, /* SVCall */
    {.handler = tt_fault_handler}, /* debug monitor */
    {.stack = 0},
    {.handler = tt_fault_handler}, /* PendSV */
    {.handler = tt_systick_handler},
};

__attribute__((naked, used)) void tt_unexpected_handler(void) {
  __asm__ volatile("ldr r0, =tt_fault_handler\n"
                   "bx r0\n"
                   ".ltorg\n"); /* link-time optimisation puts much code behind */
}

/* The FPU must be on before any compiled C: even a copy loop may use its registers. */
__attribute__((naked, noreturn)) void tt_reset_handler(void) {
  __asm__ volatile("ldr r0, =tt_stack_upper\n"
                   "mov sp, r0\n"
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
                   "ldr r0, =0xe000ed88\n" /* CPACR: full access to CP10 and CP11 */
                   "ldr r1, [r0]\n"
                   "orr r1, r1, #0xf00000\n"
                   "str r1, [r0]\n"
                   "dsb\n"
                   "isb\n"
#endif
                   "bl tt_start\n"
                   "b .\n"
                   ".ltorg\n");
}

static void copy_words(uint32_t *to, const uint32_t *end, const uint32_t *from) {
  while (to < end) {
    *to++ = *from++;
  }
}

static void clear_words(uint32_t *to, const uint32_t *end) {
  while (to < end) {
    *to++ = 0;
  }
}

__attribute__((used, noreturn)) void tt_start(void) {
  copy_words(tt_data_start, tt_data_end, tt_data_load);
  clear_words(tt_bss_start, tt_bss_end);
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  tt_paint((uint8_t *)tt_stack_lower, (uint8_t *)((here - 128u) & ~(uintptr_t)7));
#if TT_HAS_MAIN_FAULTS
  TT_REGISTER(0xe000ed08u) = (uint32_t)(uintptr_t)tt_vectors; /* VTOR */
  TT_REGISTER(0xe000ed24u) |= 7u << 16; /* SHCSR: memory, bus and usage faults of their own */
#endif
#if defined(__ARM_ARCH_8M_MAIN__) || defined(__ARM_ARCH_8_1M_MAIN__)
  __asm__ volatile("msr msplim, %0" ::"r"(tt_stack_lower));
#endif
  tt_port_init();
  tt_mpu_enable();
  tt_port_exit(tt_server_main());
}

void tt_port_stack(uint8_t **lower, uint8_t **upper) {
  *lower = (uint8_t *)tt_stack_lower;
  *upper = (uint8_t *)tt_stack_upper;
}

const char *tt_port_board(void) { return TT_BOARD_NAME; }
