/* A library inside of TVM's RPC server: one packed function takes the host's bytes and returns the
 * server's answer. The types below are those of TVM's C interface for functions (tvm-ffi 0.1) and
 * of DLPack; nothing else of TVM is needed to build or link this. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tt_port.h"
#include "tt_server.h"

#ifndef TT_BOARD_NAME
#define TT_BOARD_NAME "rpc"
#endif

enum {
  FFI_INT = 1,
  FFI_DLTENSOR_POINTER = 7,
  FFI_TENSOR = 70
};

typedef struct {
  int32_t type_index;
  uint32_t zero_padding;
  union {
    int64_t as_int;
    void *as_pointer;
  } value;
} ffi_any;

typedef struct {
  uint64_t reference_counts;
  int32_t type_index;
  uint32_t padding;
  union {
    void (*deleter)(void *self, int flags);
    int64_t align;
  } end;
} ffi_object;

typedef struct {
  void *data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t type_code;
  uint8_t bits;
  uint16_t lanes;
  int64_t *shape;
  int64_t *strides;
  uint64_t byte_offset;
} dl_tensor;

static uint8_t arena[TT_LINKED_ARENA_BYTES] __attribute__((aligned(64)));
static tt_server server;
static uint8_t *reply;
static int64_t reply_room, reply_count;

/* Bytes of a one-dimensional tensor of bytes; NULL for anything else. */
static uint8_t *bytes_of(const ffi_any *argument, int64_t *count) {
  const dl_tensor *tensor = argument->value.as_pointer;
  if (argument->type_index == FFI_TENSOR) {
    tensor = (const dl_tensor *)((const uint8_t *)argument->value.as_pointer + sizeof(ffi_object));
  } else if (argument->type_index != FFI_DLTENSOR_POINTER) {
    return NULL;
  }
  if (tensor->ndim != 1 || tensor->bits != 8 || tensor->lanes != 1) {
    return NULL;
  }
  *count = tensor->shape[0];
  return (uint8_t *)tensor->data + tensor->byte_offset;
}

static void sink(const uint8_t *bytes, size_t count) {
  if (reply_room - reply_count >= (int64_t)count) {
    memcpy(reply + reply_count, bytes, count);
    reply_count += (int64_t)count;
  }
}

/* TVM's server goes on with the next session only after one that ended well, so a fault ends this
 * process, which is the session's own, with 0. */
static void on_signal(int number) {
  static const char fault[] = "tt-fault: the library crashed\n";
  static const char late[] = "tt-fault: the library took too long\n";
  ssize_t ignored = number == SIGALRM ? write(STDERR_FILENO, late, sizeof late - 1)
                                      : write(STDERR_FILENO, fault, sizeof fault - 1);
  (void)ignored;
  _exit(0);
}

static void install_handlers(void) {
  static uint8_t handler_stack[64 * 1024];
  static const int signals[] = {SIGALRM, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  stack_t alternate;
  memset(&alternate, 0, sizeof alternate);
  alternate.ss_sp = handler_stack;
  alternate.ss_size = sizeof handler_stack;
  sigaltstack(&alternate, NULL);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK;
  for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
    sigaction(signals[i], &action, NULL);
  }
}

/* tt_rpc_exchange(request: uint8[n], count, reply: uint8[m], seconds) -> bytes of the reply, or -1.
 * What takes longer than that ends the process, which is the RPC server's for this session only. */
int __tvm_ffi_tt_rpc_exchange(void *self, const ffi_any *arguments, int32_t count, ffi_any *result);
__attribute__((visibility("default"))) int
__tvm_ffi_tt_rpc_exchange(void *self, const ffi_any *arguments, int32_t count, ffi_any *result) {
  (void)self;
  result->type_index = FFI_INT;
  result->zero_padding = 0;
  result->value.as_int = -1;
  int64_t request_room = 0;
  uint8_t *request = count == 4 ? bytes_of(&arguments[0], &request_room) : NULL;
  reply = count == 4 ? bytes_of(&arguments[2], &reply_room) : NULL;
  if (request == NULL || reply == NULL || arguments[1].type_index != FFI_INT ||
      arguments[1].value.as_int < 0 || arguments[1].value.as_int > request_room ||
      arguments[3].type_index != FFI_INT) {
    return 0;
  }
  reply_count = 0;
  if (server.library == NULL) {
    install_handlers();
    tt_server_init(&server, tt_active_library, arena, sizeof arena, sink);
  }
  alarm((unsigned)arguments[3].value.as_int);
  tt_server_feed(&server, request, (size_t)arguments[1].value.as_int);
  alarm(0);
  result->value.as_int = reply_count;
  return 0;
}

/* The RPC server's stack is not ours to paint: its use is not measured. */
void tt_port_stack(uint8_t **lower, uint8_t **upper) {
  static uint8_t none[8];
  *lower = none;
  *upper = none;
}

uint64_t tt_port_ticks(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint32_t tt_port_ticks_per_second(void) { return 1000000000u; }

const char *tt_port_board(void) { return TT_BOARD_NAME; }
