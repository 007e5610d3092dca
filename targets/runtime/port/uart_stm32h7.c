/* NUCLEO-H743ZI: USART3 at PD8 and PD9, which the on-board debugger shows as a serial port.
 * The core runs at 64 MHz from the internal oscillator, as after reset. Not run on hardware. */
#include "tt_cortex_m.h"
#include "tt_port.h"

#define RCC_AHB4ENR TT_REGISTER(0x580244e0u)
#define RCC_APB1LENR TT_REGISTER(0x580244e8u)
#define GPIOD_MODER TT_REGISTER(0x58020c00u)
#define GPIOD_AFRH TT_REGISTER(0x58020c24u)
#define USART_BASE 0x40004800u

#include "uart_stm32.h"

void tt_port_init(void) {
  RCC_AHB4ENR |= 1u << 3;   /* GPIO D */
  RCC_APB1LENR |= 1u << 18; /* USART3 */
  (void)RCC_APB1LENR;
  GPIOD_MODER = (GPIOD_MODER & ~(15u << 16)) | 10u << 16; /* PD8, PD9: alternate function */
  GPIOD_AFRH = (GPIOD_AFRH & ~0xffu) | 0x77u;             /* 7: USART3 */
  usart_start();
  tt_ticks_start();
}
