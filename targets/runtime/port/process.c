/* A process under an operating system: board "host", Linux boards, user-mode emulators. The stream
 * is stdin and stdout, or with the argument --listen=PORT the first connection to that TCP port;
 * the console is stderr. The server runs on a thread whose stack is painted and ends at a page that
 * nobody may touch. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tt_paint.h"
#include "tt_port.h"
#include "tt_server.h"

#ifndef TT_STACK_BYTES
#define TT_STACK_BYTES (256 * 1024)
#endif
#ifndef TT_BOARD_NAME
#define TT_BOARD_NAME "host"
#endif
#define GUARD_BYTES (64 * 1024)

static uint8_t *stack_lower;
static uint8_t pending[4096];
static size_t pending_count;

void tt_port_init(void) {}

size_t tt_port_read(uint8_t *bytes, size_t max) {
  for (;;) {
    ssize_t count = read(STDIN_FILENO, bytes, max);
    if (count >= 0) {
      return (size_t)count;
    }
    if (errno != EINTR) {
      return 0;
    }
  }
}

void tt_port_flush(void) {
  size_t sent = 0;
  while (sent < pending_count) {
    ssize_t count = write(STDOUT_FILENO, pending + sent, pending_count - sent);
    if (count < 0 && errno != EINTR) {
      _exit(0); /* the host is gone */
    }
    sent += count > 0 ? (size_t)count : 0;
  }
  pending_count = 0;
}

void tt_port_write(const uint8_t *bytes, size_t count) {
  while (count > 0) {
    if (pending_count == sizeof pending) {
      tt_port_flush();
    }
    size_t room = sizeof pending - pending_count;
    size_t part = count < room ? count : room;
    memcpy(pending + pending_count, bytes, part);
    pending_count += part;
    bytes += part;
    count -= part;
  }
}

void tt_port_console(const char *text) {
  ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
  (void)ignored;
}

void tt_port_exit(int code) { _exit(code); }

uint64_t tt_port_ticks(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint32_t tt_port_ticks_per_second(void) { return 1000000000u; }

void tt_port_stack(uint8_t **lower, uint8_t **upper) {
  *lower = stack_lower;
  *upper = stack_lower + TT_STACK_BYTES;
}

const char *tt_port_board(void) { return TT_BOARD_NAME; }

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)context;
  const uint8_t *address = (const uint8_t *)info->si_addr;
  int overflow = address >= stack_lower - GUARD_BYTES && address < stack_lower;
  const char *running = tt_server_running;
  char line[200];
  snprintf(line, sizeof line, "tt-fault: signal %d (%s) at address %p in %s%s\n", number,
           number == SIGFPE   ? "arithmetic"
           : number == SIGILL ? "illegal instruction"
                              : "memory access",
           (const void *)address, running != NULL ? running : "the server",
           overflow ? ": stack overflow" : "");
  tt_port_console(line);
  _exit(99);
}

static void install_handlers(void) {
  static uint8_t handler_stack[64 * 1024];
  stack_t alternate;
  memset(&alternate, 0, sizeof alternate);
  alternate.ss_sp = handler_stack;
  alternate.ss_size = sizeof handler_stack;
  sigaltstack(&alternate, NULL);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, NULL);
  sigaction(SIGBUS, &action, NULL);
  sigaction(SIGFPE, &action, NULL);
  sigaction(SIGILL, &action, NULL);
}

static void *serve(void *unused) {
  (void)unused;
  install_handlers();
  _exit(tt_server_main());
}

/* Serves one connection: its socket becomes stdin and stdout. */
static int listen_on(const char *text) {
  struct sockaddr_in address;
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_ANY);
  address.sin_port = htons((uint16_t)strtoul(text, NULL, 10));
  socklen_t length = sizeof address;
  const int on = 1;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(listener, (const struct sockaddr *)&address, sizeof address) != 0 ||
      listen(listener, 1) != 0 ||
      getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
    perror("listen");
    return -1;
  }
  fprintf(stderr, "listening on port %u\n", (unsigned)ntohs(address.sin_port));
  int connection = accept(listener, NULL, NULL);
  if (connection < 0 || dup2(connection, STDIN_FILENO) < 0 || dup2(connection, STDOUT_FILENO) < 0) {
    perror("accept");
    return -1;
  }
  setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  close(listener);
  close(connection);
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 1 && (strncmp(argv[1], "--listen=", 9) != 0 || listen_on(argv[1] + 9) != 0)) {
    return 2;
  }
  uint8_t *mapped = mmap(NULL, GUARD_BYTES + TT_STACK_BYTES, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED || mprotect(mapped, GUARD_BYTES, PROT_NONE) != 0) {
    perror("stack");
    return 1;
  }
  signal(SIGPIPE, SIG_IGN);
  stack_lower = mapped + GUARD_BYTES;
  tt_paint(stack_lower, stack_lower + TT_STACK_BYTES);
  pthread_attr_t attributes;
  pthread_t thread;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack_lower, TT_STACK_BYTES);
  if (pthread_create(&thread, &attributes, serve, NULL) != 0) {
    perror("thread");
    return 1;
  }
  pthread_join(thread, NULL);
  return 1;
}
