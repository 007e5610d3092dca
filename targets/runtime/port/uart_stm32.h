/* The UART of STM32F7 and H7 at USART_BASE, polled; the port that includes this turns clock and
 * pins on. */
#ifndef TT_UART_STM32_H
#define TT_UART_STM32_H

#define USART_CR1 TT_REGISTER(USART_BASE + 0x00u)
#define USART_BRR TT_REGISTER(USART_BASE + 0x0cu)
#define USART_ISR TT_REGISTER(USART_BASE + 0x1cu)
#define USART_ICR TT_REGISTER(USART_BASE + 0x20u)
#define USART_RDR TT_REGISTER(USART_BASE + 0x24u)
#define USART_TDR TT_REGISTER(USART_BASE + 0x28u)

static void usart_start(void) {
  USART_BRR = (TT_CLOCK_HZ + TT_BAUD / 2u) / TT_BAUD;
  USART_CR1 = 1u << 3 | 1u << 2 | 1u << 0; /* send, receive, on */
}

static int usart_has_byte(void) {
  uint32_t state = USART_ISR;
  if (state & 15u) {
    USART_ICR = 15u; /* parity, framing, noise, overrun: the frame's CRC finds what was lost */
  }
  return (state & 1u << 5) != 0;
}

size_t tt_port_read(uint8_t *bytes, size_t max) {
  size_t count = 0;
  while (count < max && (count == 0 || usart_has_byte())) {
    while (!usart_has_byte()) {
    }
    bytes[count++] = (uint8_t)USART_RDR;
  }
  return count;
}

void tt_port_write(const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    while (!(USART_ISR & 1u << 7)) {
    }
    USART_TDR = bytes[i];
  }
}

void tt_port_flush(void) {}

#include "uart_console.h"

#endif /* TT_UART_STM32_H */
