/* What a board gives the server: one byte stream, a console, a clock, a stack that can be measured.
 */
#ifndef TT_PORT_H
#define TT_PORT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

void tt_port_init(void);

/* Waits for at least one byte; returns how many came, at most max. 0: the other side is gone. */
size_t tt_port_read(uint8_t *bytes, size_t max);

/* Sends, or keeps for the next flush. */
void tt_port_write(const uint8_t *bytes, size_t count);
void tt_port_flush(void);

/* Text for people; may come at any time, even from a fault handler. */
void tt_port_console(const char *text);

/* Ends the program where there is something to return to, else stops the processor. */
void tt_port_exit(int code) __attribute__((noreturn));

/* A free-running clock, and its rate; 0 Hz when the board has none. */
uint64_t tt_port_ticks(void);
uint32_t tt_port_ticks_per_second(void);

/* The lowest address of the stack and the first one above it. */
void tt_port_stack(uint8_t **lower, uint8_t **upper);

/* The name that the board has in the host's table. */
const char *tt_port_board(void);

#ifdef __cplusplus
}
#endif

#endif /* TT_PORT_H */
