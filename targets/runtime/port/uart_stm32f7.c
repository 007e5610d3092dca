/* STM32F746G-DISCO: USART1 at PA9 and PB7, which the on-board debugger shows as a serial port.
 * The core runs at 16 MHz from the internal oscillator, as after reset. Not run on hardware. */
#include "tt_cortex_m.h"
#include "tt_port.h"

#define RCC_AHB1ENR TT_REGISTER(0x40023830u)
#define RCC_APB2ENR TT_REGISTER(0x40023844u)
#define GPIO_MODER(port) TT_REGISTER(0x40020000u + 0x400u * (port))
#define GPIO_AFRL(port) TT_REGISTER(0x40020020u + 0x400u * (port))
#define GPIO_AFRH(port) TT_REGISTER(0x40020024u + 0x400u * (port))
#define USART_BASE 0x40011000u

#include "uart_stm32.h"

void tt_port_init(void) {
  RCC_AHB1ENR |= 1u << 0 | 1u << 1; /* GPIO A and B */
  RCC_APB2ENR |= 1u << 4;           /* USART1 */
  (void)RCC_APB2ENR;
  GPIO_MODER(0) = (GPIO_MODER(0) & ~(3u << 18)) | 2u << 18; /* PA9: alternate function */
  GPIO_AFRH(0) = (GPIO_AFRH(0) & ~(15u << 4)) | 7u << 4;    /* 7: USART1 */
  GPIO_MODER(1) = (GPIO_MODER(1) & ~(3u << 14)) | 2u << 14; /* PB7 */
  GPIO_AFRL(1) = (GPIO_AFRL(1) & ~(15u << 28)) | 7u << 28;
  usart_start();
  tt_ticks_start();
}
