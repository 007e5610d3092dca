#include "tt_server.h"

#include <string.h>

#include "tt_paint.h"
#include "tt_port.h"

const char *volatile tt_server_running;

__attribute__((noinline)) void tt_region_begin(void) { __asm__ volatile("" ::: "memory"); }
__attribute__((noinline)) void tt_region_end(void) { __asm__ volatile("" ::: "memory"); }

/* The reply that is being written; it takes the request's place in server->frame. */
typedef struct {
  uint8_t *payload;
  uint32_t length;
} tt_reply;

static int fits(const tt_reply *reply, uint32_t bytes) {
  return bytes <= TT_FRAME_PAYLOAD - reply->length;
}

static void put_u32(tt_reply *reply, uint32_t value) {
  if (fits(reply, 4)) {
    tt_put_u32(reply->payload + reply->length, value);
    reply->length += 4;
  }
}

static void put_bytes(tt_reply *reply, const void *bytes, uint32_t count) {
  if (fits(reply, count)) {
    memcpy(reply->payload + reply->length, bytes, count);
    reply->length += count;
  }
}

static void put_text(tt_reply *reply, const char *text) {
  put_bytes(reply, text, (uint32_t)strlen(text) + 1u);
}

static uint8_t *tensor_bytes(const tt_server *server, const tt_tensor *tensor) {
  return server->arena + tensor->offset;
}

/* The tensor that a request names, or the whole arena. */
static int find_tensor(const tt_server *server, uint32_t index, tt_tensor *tensor) {
  if (index == TT_WHOLE_ARENA) {
    memset(tensor, 0, sizeof *tensor);
    tensor->bytes = server->library->arena_bytes;
    return 1;
  }
  if (index >= server->library->num_tensors) {
    return 0;
  }
  *tensor = server->library->tensors[index];
  return 1;
}

static int32_t run_entry(tt_server *server, uint32_t index, uint32_t times) {
  const tt_entry *entry = &server->library->entries[index];
  int32_t status = TT_OK;
  tt_server_running = entry->name;
  for (uint32_t i = 0; i < times && status == TT_OK; i++) {
    tt_region_begin();
    status = entry->run(server->arena);
    tt_region_end();
  }
  tt_server_running = NULL;
  return status;
}

static __attribute__((noinline)) void paint_free_stack(void) {
  uint8_t *lower;
  uint8_t *upper;
  tt_port_stack(&lower, &upper);
  /* What lies 256 bytes under this frame is free; the margin is for tt_paint itself. */
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  if (here < (uintptr_t)lower + 512u || here >= (uintptr_t)upper) {
    return;
  }
  tt_paint(lower, lower + ((here - (uintptr_t)lower - 256u) & ~(uintptr_t)3));
}

static int tensors_are_sound(const tt_server *server) {
  const tt_library *library = server->library;
  for (uint32_t i = 0; i < library->num_tensors; i++) {
    const tt_tensor *tensor = &library->tensors[i];
    if (tensor->data == NULL && (tensor->bytes > library->arena_bytes ||
                                 tensor->offset > library->arena_bytes - tensor->bytes)) {
      return 0;
    }
  }
  return 1;
}

static int32_t reset(tt_server *server) {
  const tt_library *library = server->library;
  paint_free_stack();
  tt_paint(server->arena, server->arena + server->arena_linked);
  if (library->arena_bytes > server->arena_linked) {
    server->init_status = TT_ERR_ARENA_SMALL;
  } else if (library->arena_align != 0 && (uintptr_t)server->arena % library->arena_align != 0) {
    server->init_status = TT_ERR_ARENA_ALIGN;
  } else if (!tensors_are_sound(server)) {
    server->init_status = TT_ERR_RANGE;
  } else if (library->num_entries == 0) {
    server->init_status = TT_ERR_NO_ENTRY;
  } else {
    server->init_status = run_entry(server, 0, 1);
  }
  return server->init_status;
}

static tt_reply_status info(const tt_server *server, tt_reply *reply) {
  const tt_library *library = server->library;
  put_u32(reply, TT_PROTOCOL_VERSION);
  put_u32(reply, TT_FRAME_PAYLOAD);
  put_u32(reply, library->arena_bytes);
  put_u32(reply, library->arena_align);
  put_u32(reply, library->num_tensors);
  put_u32(reply, library->num_entries);
  put_u32(reply, tt_port_ticks_per_second());
  put_u32(reply, server->arena_linked);
  put_text(reply, library->name);
  put_text(reply, library->version);
  put_text(reply, library->digest);
  put_text(reply, tt_port_board());
  return TT_REPLY_OK;
}

static tt_reply_status list_tensors(const tt_server *server, uint32_t first, tt_reply *reply) {
  const tt_library *library = server->library;
  uint32_t count = 0;
  put_u32(reply, 0);
  for (uint32_t i = first; i < library->num_tensors; i++, count++) {
    const tt_tensor *tensor = &library->tensors[i];
    if (!fits(reply, 4u + TT_MAX_NDIM * 4u + 12u + (uint32_t)strlen(tensor->name) + 1u)) {
      break;
    }
    uint8_t head[4] = {tensor->dtype, tensor->role, tensor->ndim, tensor->flags};
    put_bytes(reply, head, sizeof head);
    for (uint32_t axis = 0; axis < TT_MAX_NDIM; axis++) {
      put_u32(reply, tensor->shape[axis]);
    }
    put_u32(reply, tensor->bytes);
    put_u32(reply, tensor->offset);
    put_u32(reply, tensor->data != NULL);
    put_text(reply, tensor->name);
  }
  tt_put_u32(reply->payload, count);
  return TT_REPLY_OK;
}

static tt_reply_status list_entries(const tt_server *server, uint32_t first, tt_reply *reply) {
  const tt_library *library = server->library;
  uint32_t count = 0;
  put_u32(reply, 0);
  for (uint32_t i = first; i < library->num_entries; i++, count++) {
    if (!fits(reply, (uint32_t)strlen(library->entries[i].name) + 1u)) {
      break;
    }
    put_text(reply, library->entries[i].name);
  }
  tt_put_u32(reply->payload, count);
  return TT_REPLY_OK;
}

static tt_reply_status read_tensor(const tt_server *server, uint32_t index, uint32_t offset,
                                   uint32_t count, tt_reply *reply) {
  tt_tensor tensor;
  if (!find_tensor(server, index, &tensor)) {
    return TT_REPLY_NO_TENSOR;
  }
  if (offset > tensor.bytes || count > tensor.bytes - offset || count > TT_FRAME_PAYLOAD) {
    return TT_REPLY_RANGE;
  }
  const uint8_t *data =
      tensor.data != NULL ? (const uint8_t *)tensor.data : tensor_bytes(server, &tensor);
  put_bytes(reply, data + offset, count);
  return TT_REPLY_OK;
}

static tt_reply_status write_tensor(const tt_server *server, uint32_t index, uint32_t offset,
                                    const uint8_t *bytes, uint32_t count) {
  tt_tensor tensor;
  if (!find_tensor(server, index, &tensor)) {
    return TT_REPLY_NO_TENSOR;
  }
  if (tensor.data != NULL) {
    return TT_REPLY_READ_ONLY;
  }
  if (offset > tensor.bytes || count > tensor.bytes - offset) {
    return TT_REPLY_RANGE;
  }
  memcpy(tensor_bytes(server, &tensor) + offset, bytes, count);
  return TT_REPLY_OK;
}

static void put_call(const tt_server *server, tt_reply *reply) {
  put_u32(reply, (uint32_t)server->call_status);
  put_u32(reply, (uint32_t)server->call_ticks);
  put_u32(reply, (uint32_t)(server->call_ticks >> 32));
}

static tt_reply_status call_entry(tt_server *server, uint32_t index, uint32_t times,
                                  tt_reply *reply) {
  if (index >= server->library->num_entries) {
    return TT_REPLY_NO_ENTRY;
  }
  uint64_t start = tt_port_ticks();
  server->call_status = run_entry(server, index, times);
  server->call_ticks = tt_port_ticks() - start;
  server->ran = TT_CMD_CALL;
  if (index == 0) {
    server->init_status = server->call_status;
  }
  put_call(server, reply);
  return TT_REPLY_OK;
}

static tt_reply_status memory(const tt_server *server, tt_reply *reply) {
  uint8_t *lower;
  uint8_t *upper;
  tt_port_stack(&lower, &upper);
  put_u32(reply, (uint32_t)(upper - lower));
  put_u32(reply, tt_painted_peak_from_above(lower, upper));
  put_u32(reply, tt_painted_peak_from_below(server->arena, server->arena + server->arena_linked));
  put_u32(reply, tt_painted_touched(server->arena, server->arena + server->arena_linked));
  return TT_REPLY_OK;
}

/* The fewest bytes of payload that each command needs. */
static uint32_t least_payload(uint8_t command) {
  switch (command) {
  case TT_CMD_SYNC:
  case TT_CMD_TENSORS:
  case TT_CMD_ENTRIES:
    return 4;
  case TT_CMD_WRITE:
  case TT_CMD_CALL:
    return 8;
  case TT_CMD_READ:
    return 12;
  default:
    return 0;
  }
}

static int needs_library(uint8_t command) {
  return command == TT_CMD_READ || command == TT_CMD_WRITE || command == TT_CMD_CALL;
}

/* What a session does with the arena: after a restart that is the arena of an untrained library. */
static int needs_session(uint8_t command) {
  return needs_library(command) || command == TT_CMD_MEMORY || command == TT_CMD_RESET;
}

/* The request's payload and the reply's are the same bytes: take the arguments out first.
 * `repeated`: the command ran under this id already; one that was refused is refused again. */
static tt_reply_status execute(tt_server *server, uint8_t command, int repeated, uint32_t length,
                               tt_reply *reply) {
  const uint8_t *request = reply->payload;
  if (length < least_payload(command)) {
    return TT_REPLY_BAD_LENGTH;
  }
  uint32_t arg[3] = {0, 0, 0};
  for (uint32_t i = 0; i < 3 && (i + 1) * 4 <= length; i++) {
    arg[i] = tt_get_u32(request + 4 * i);
  }
  if (needs_session(command) && !server->synced) {
    return TT_REPLY_NOT_SYNCED;
  }
  if (needs_library(command) && server->init_status != TT_OK &&
      !(command == TT_CMD_CALL && arg[0] == 0)) {
    put_u32(reply, (uint32_t)server->init_status);
    return TT_REPLY_NOT_READY;
  }
  switch (command) {
  case TT_CMD_SYNC:
    put_u32(reply, arg[0]);
    return TT_REPLY_OK;
  case TT_CMD_INFO:
    return info(server, reply);
  case TT_CMD_TENSORS:
    return list_tensors(server, arg[0], reply);
  case TT_CMD_ENTRIES:
    return list_entries(server, arg[0], reply);
  case TT_CMD_READ:
    return read_tensor(server, arg[0], arg[1], arg[2], reply);
  case TT_CMD_WRITE:
    return write_tensor(server, arg[0], arg[1], request + 8, length - 8);
  case TT_CMD_CALL:
    if (repeated) {
      put_call(server, reply);
      return TT_REPLY_OK;
    }
    return call_entry(server, arg[0], arg[1], reply);
  case TT_CMD_MEMORY:
    return memory(server, reply);
  case TT_CMD_RESET:
    put_u32(reply, (uint32_t)(repeated ? server->init_status : reset(server)));
    server->ran = TT_CMD_RESET;
    return TT_REPLY_OK;
  case TT_CMD_ECHO:
    reply->length = length;
    return TT_REPLY_OK;
  case TT_CMD_EXIT:
    server->exiting = 1;
    return TT_REPLY_OK;
  default:
    return TT_REPLY_BAD_COMMAND;
  }
}

static void send_reply(tt_server *server, tt_reply_status status, uint16_t id, uint32_t length) {
  uint8_t *frame = server->frame;
  frame[0] = TT_FRAME_REPLY;
  frame[1] = (uint8_t)status;
  frame[2] = (uint8_t)id;
  frame[3] = (uint8_t)(id >> 8);
  tt_frame_send(frame, TT_FRAME_HEADER + length, server->sink);
}

static void handle(tt_server *server, uint32_t length) {
  uint8_t *frame = server->frame;
  int32_t payload = tt_frame_payload(frame, length);
  if (payload < 0 || frame[0] != TT_FRAME_REQUEST) {
    send_reply(server, TT_REPLY_BAD_FRAME, 0xffff, 0);
    return;
  }
  uint8_t command = frame[1];
  uint16_t id = (uint16_t)(frame[2] | frame[3] << 8);
  int repeated = server->synced && id == server->last_id && command == server->ran;
  if (command == TT_CMD_SYNC && payload >= 4) {
    uint32_t nonce = tt_get_u32(frame + TT_FRAME_HEADER);
    if (!server->synced || nonce != server->nonce) {
      server->synced = 1;
      server->nonce = nonce;
      server->last_id = id;
      server->ran = 0;
    }
  } else if (server->synced && (uint16_t)(id - server->last_id) >= 0x8000u) {
    return; /* a late copy of an old request */
  } else if (id != server->last_id) {
    server->ran = 0;
  }
  tt_reply reply = {frame + TT_FRAME_HEADER, 0};
  tt_reply_status status = execute(server, command, repeated, (uint32_t)payload, &reply);
  if (command != TT_CMD_SYNC) {
    server->last_id = id;
  }
  send_reply(server, status, id, reply.length);
}

void tt_server_init(tt_server *server, const tt_library *library, uint8_t *arena,
                    uint32_t arena_linked, tt_sink sink) {
  memset(server, 0, sizeof *server);
  server->library = library;
  server->arena = arena;
  server->arena_linked = arena_linked;
  server->sink = sink;
  tt_decoder_init(&server->decoder, server->frame, sizeof server->frame);
  reset(server);
}

void tt_server_feed(tt_server *server, const uint8_t *bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    uint32_t length;
    tt_decode_result result = tt_decoder_push(&server->decoder, bytes[i], &length);
    if (result == TT_DECODE_FRAME) {
      handle(server, length);
    } else if (result == TT_DECODE_BAD) {
      send_reply(server, TT_REPLY_BAD_FRAME, 0xffff, 0);
    }
  }
}
