/* Answers a host's requests for one library. One buffer serves the request and the reply. */
#ifndef TT_SERVER_H
#define TT_SERVER_H

#include "tinytrain.h"
#include "tt_frame.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef TT_FRAME_PAYLOAD
#define TT_FRAME_PAYLOAD 1024u /* most bytes of payload in one frame, at least 256 */
#endif

#define TT_PROTOCOL_VERSION 1u
#define TT_WHOLE_ARENA 0xffffffffu /* instead of a tensor's number: all of the arena */

/* Payload of the request -> payload of the reply. u32 unless said otherwise; text ends in a zero.
 */
typedef enum {
  TT_CMD_SYNC = 1, /* nonce -> nonce. A new nonce starts a new count of request ids. Before the
                      first one nothing touches the arena: TT_REPLY_NOT_SYNCED. */
  TT_CMD_INFO =
      2,              /* -> protocol, most payload, arena bytes, arena alignment, tensors, entries,
                         ticks per second, arena bytes linked, then the texts library, version, digest, board */
  TT_CMD_TENSORS = 3, /* first -> count, then as many as fit: dtype, role, ndim, flags as bytes,
                         6 x shape, bytes, offset, 1 if in flash, name as text */
  TT_CMD_ENTRIES = 4, /* first -> count, then names as texts */
  TT_CMD_READ = 5,    /* tensor, byte offset, byte count -> bytes */
  TT_CMD_WRITE = 6,   /* tensor, byte offset, bytes -> nothing */
  TT_CMD_CALL = 7,    /* entry, times -> status as int32, ticks as u64 */
  TT_CMD_MEMORY = 8,  /* -> stack bytes, stack peak, arena peak, arena bytes touched */
  TT_CMD_RESET = 9,   /* paints the arena and the free stack, calls "init" -> status as int32 */
  TT_CMD_ECHO = 10,   /* bytes -> the same bytes */
  TT_CMD_EXIT = 11    /* -> nothing, then the program ends where there is something to return to */
} tt_command;

typedef enum {
  TT_REPLY_OK = 0,
  TT_REPLY_BAD_FRAME = 1, /* the id is 0xffff: it is not known */
  TT_REPLY_BAD_COMMAND = 2,
  TT_REPLY_BAD_LENGTH = 3,
  TT_REPLY_NO_TENSOR = 4,
  TT_REPLY_NO_ENTRY = 5,
  TT_REPLY_RANGE = 6,
  TT_REPLY_READ_ONLY = 7,
  TT_REPLY_NOT_READY = 8, /* "init" has failed; its status follows as int32 */
  TT_REPLY_NOT_SYNCED = 9 /* no TT_CMD_SYNC since this program started: it is not the one that the
                             host's session began with */
} tt_reply_status;

typedef struct {
  const tt_library *library;
  uint8_t *arena;        /* aligned to library->arena_align */
  uint32_t arena_linked; /* bytes of the arena with the guard behind it, a multiple of four */
  tt_sink sink;
  tt_decoder decoder;
  int32_t init_status;
  uint32_t nonce;
  uint16_t last_id;
  uint8_t synced;
  uint8_t exiting;
  uint8_t ran;         /* TT_CMD_CALL or TT_CMD_RESET if it ran under last_id: not run twice */
  int32_t call_status; /* what that call returned, for the reply to its repetition */
  uint64_t call_ticks;
  uint8_t frame[TT_FRAME_HEADER + TT_FRAME_PAYLOAD + TT_FRAME_TRAILER];
} tt_server;

/* Paints the arena and calls the library's "init". */
void tt_server_init(tt_server *server, const tt_library *library, uint8_t *arena,
                    uint32_t arena_linked, tt_sink sink);

/* Takes any bytes; answers every whole frame in them. */
void tt_server_feed(tt_server *server, const uint8_t *bytes, size_t count);

/* The entry that runs now, for a fault's report; NULL when none does. */
extern const char *volatile tt_server_running;

/* An instruction counter watches these two addresses; they stand around every call of an entry. */
void tt_region_begin(void);
void tt_region_end(void);

/* Serves tt_active_library over the port until the host is gone. */
extern const tt_library *const tt_active_library;
int tt_server_main(void);

#ifdef __cplusplus
}
#endif

#endif /* TT_SERVER_H */
