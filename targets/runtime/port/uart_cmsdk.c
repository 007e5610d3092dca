/* The UART of Arm's MPS2 boards, for those who have the board and not the emulator's faster pipes.
 */
#include "tt_cortex_m.h"
#include "tt_port.h"

#ifndef TT_UART_BASE
#define TT_UART_BASE 0x40004000u
#endif
#define UART(offset) TT_REGISTER(TT_UART_BASE + (offset))
#define DATA UART(0u)
#define STATE UART(4u)
#define CTRL UART(8u)
#define BAUDDIV UART(16u)

void tt_port_init(void) {
  BAUDDIV = TT_CLOCK_HZ / TT_BAUD;
  CTRL = 3; /* send, receive */
  tt_ticks_start();
}

size_t tt_port_read(uint8_t *bytes, size_t max) {
  size_t count = 0;
  while (count < max && (count == 0 || (STATE & 2u))) {
    while (!(STATE & 2u)) {
    }
    bytes[count++] = (uint8_t)DATA;
  }
  return count;
}

void tt_port_write(const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    while (STATE & 1u) {
    }
    DATA = bytes[i];
  }
}

void tt_port_flush(void) {}

#include "uart_console.h"
