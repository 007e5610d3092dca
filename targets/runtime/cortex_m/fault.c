/* A fault ends the program with one line that says what, where and in which entry. */
#include <stdint.h>

#include "tt_cortex_m.h"
#include "tt_port.h"
#include "tt_server.h"

void tt_fault_handler(void);
void tt_fault_report(const uint32_t *frame, uint32_t exception);

/* The stack may be the very thing that is broken: the report runs on a stack of its own. */
#define REPORT_STACK_BYTES 512
__attribute__((used, aligned(8))) uint8_t tt_report_stack[REPORT_STACK_BYTES];

__attribute__((naked)) void tt_fault_handler(void) {
  __asm__ volatile("mrs r0, msp\n"
                   "mrs r1, ipsr\n"
#if defined(__ARM_ARCH_8M_MAIN__) || defined(__ARM_ARCH_8_1M_MAIN__)
                   "movs r2, #0\n"
                   "msr msplim, r2\n"
#endif
                   "ldr r2, =tt_report_stack + 512\n"
                   "mov sp, r2\n"
                   "ldr r2, =tt_fault_report\n"
                   "bx r2\n"
                   ".ltorg\n"); /* link-time optimisation puts much code behind */
}

static void print_hex(const char *label, uint32_t value) {
  char text[12] = "0x";
  for (int i = 0; i < 8; i++) {
    text[2 + i] = "0123456789abcdef"[value >> (28 - 4 * i) & 15u];
  }
  text[10] = '\0';
  tt_port_console(label);
  tt_port_console(text);
}

static const char *exception_name(uint32_t exception) {
  switch (exception) {
  case 2:
    return "NMI";
  case 3:
    return "HardFault";
  case 4:
    return "MemManage";
  case 5:
    return "BusFault";
  case 6:
    return "UsageFault";
  case 7:
    return "SecureFault";
  default:
    return "an unexpected exception";
  }
}

__attribute__((used, noreturn)) void tt_fault_report(const uint32_t *frame, uint32_t exception) {
  const char *running = tt_server_running;
  int frame_is_valid =
      frame >= tt_stack_lower && frame + 8 <= tt_stack_upper && ((uintptr_t)frame & 3u) == 0;
  int overflow = frame < tt_stack_lower;
  tt_port_flush();
  tt_port_console("\ntt-fault: ");
  tt_port_console(exception_name(exception & 0x1ffu));
  tt_port_console(" in ");
  tt_port_console(running != 0 ? running : "the server");
#if TT_HAS_MAIN_FAULTS
  uint32_t cause = TT_REGISTER(0xe000ed28u);
  /* MSTKERR, MLSPERR, STKERR, LSPERR, STKOF: the exception's frame could not be written. */
  if (cause & (1u << 4 | 1u << 5 | 1u << 12 | 1u << 13 | 1u << 20)) {
    frame_is_valid = 0;
    overflow = 1;
  }
  print_hex(" cfsr=", cause);
  print_hex(" hfsr=", TT_REGISTER(0xe000ed2cu));
  if (cause & 1u << 7) {
    print_hex(" address=", TT_REGISTER(0xe000ed34u));
  }
  if (cause & 1u << 15) {
    print_hex(" address=", TT_REGISTER(0xe000ed38u));
  }
#endif
  if (frame_is_valid) {
    print_hex(" pc=", frame[6]);
    print_hex(" lr=", frame[5]);
  }
  print_hex(" sp=", (uint32_t)(uintptr_t)frame);
  if (overflow) {
    print_hex(": stack overflow, the stack ends at ", (uint32_t)(uintptr_t)tt_stack_lower);
  }
  tt_port_console("\n");
  tt_port_exit(99);
}
