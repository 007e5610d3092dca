/* nRF52840-DK: UART0 at P0.06 and P0.08, which the on-board debugger shows as a serial port.
 * The core runs at 64 MHz. Not run on hardware. */
#include "tt_cortex_m.h"
#include "tt_port.h"

#define UART(offset) TT_REGISTER(0x40002000u + (offset))
#define PIN_DIRSET TT_REGISTER(0x50000518u)
#define PIN_OUTSET TT_REGISTER(0x50000508u)
#define PIN_CNF(pin) TT_REGISTER(0x50000700u + 4u * (pin))
#define START_RECEIVE UART(0x000u)
#define START_SEND UART(0x008u)
#define RECEIVED UART(0x108u)
#define SENT UART(0x11cu)
#define RECEIVE_BYTE UART(0x518u)
#define SEND_BYTE UART(0x51cu)

#if TT_BAUD != 115200
#error "the baud register below is for 115200"
#endif

void tt_port_init(void) {
  PIN_OUTSET = 1u << 6;
  PIN_DIRSET = 1u << 6;
  PIN_CNF(8u) = 0;            /* input, connected */
  UART(0x50cu) = 6;           /* PSELTXD */
  UART(0x514u) = 8;           /* PSELRXD */
  UART(0x524u) = 0x01d7e000u; /* 115200 baud */
  UART(0x500u) = 4;           /* ENABLE */
  START_SEND = 1;
  START_RECEIVE = 1;
  tt_ticks_start();
}

size_t tt_port_read(uint8_t *bytes, size_t max) {
  size_t count = 0;
  while (count < max && (count == 0 || RECEIVED)) {
    while (!RECEIVED) {
    }
    RECEIVED = 0;
    bytes[count++] = (uint8_t)RECEIVE_BYTE;
  }
  return count;
}

void tt_port_write(const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    SENT = 0;
    SEND_BYTE = bytes[i];
    while (!SENT) {
    }
  }
}

void tt_port_flush(void) {}

#include "uart_console.h"
