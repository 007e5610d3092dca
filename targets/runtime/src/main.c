/* The program of a board: one library, one arena, one server. */
#include "tt_paint.h"
#include "tt_port.h"
#include "tt_server.h"

#ifndef TT_LINKED_ARENA_BYTES
#error "define TT_LINKED_ARENA_BYTES: the library's arena with its guard, a multiple of 4"
#endif
#ifndef TT_LINKED_ARENA_ALIGN
#define TT_LINKED_ARENA_ALIGN 32
#endif

#ifndef TT_RECEIVE_BYTES
#define TT_RECEIVE_BYTES 64
#endif

/* A section of its own: a linker map may put the arena in another memory than .bss. */
static uint8_t arena[TT_LINKED_ARENA_BYTES]
    __attribute__((section(".bss.tt_arena"), aligned(TT_LINKED_ARENA_ALIGN)));
#ifdef TT_STANDALONE
void tt_standalone_run(const tt_library *library, uint8_t *arena);
#endif

static uint8_t received[TT_RECEIVE_BYTES];
static tt_server server;

int tt_server_main(void) {
  tt_server_init(&server, tt_active_library, arena, sizeof arena, tt_port_write);
#ifdef TT_STANDALONE
  tt_standalone_run(tt_active_library, arena);
#endif
  while (!server.exiting) {
    size_t count = tt_port_read(received, sizeof received);
    if (count == 0) {
      return 0;
    }
    tt_server_feed(&server, received, count);
    tt_port_flush();
  }
  return 0;
}
