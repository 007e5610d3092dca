/* Boards whose console shares the serial line with the frames: the host takes what is no frame for
 * text. */
#ifndef TT_UART_CONSOLE_H
#define TT_UART_CONSOLE_H

void tt_port_console(const char *text) {
  while (*text != '\0') {
    tt_port_write((const uint8_t *)text++, 1);
  }
}

/* There is nothing to return to. */
void tt_port_exit(int code) {
  (void)code;
  for (;;) {
  }
}

#endif /* TT_UART_CONSOLE_H */
