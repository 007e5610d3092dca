"""Texts of the files that an export adds to a library's own; @NAME@ and the like are filled in by `fill`."""

from __future__ import annotations

import re


def fill(template: str, name: str, **more: str) -> str:
    """The text with the library's name in place of @NAME@ (in C), @UPPER@ and @TITLE@, and with further words."""
    title = "".join(part.capitalize() for part in name.split("_"))
    words = {"NAME": name, "UPPER": name.upper(), "TITLE": title, **more}
    return re.sub(r"@([A-Z_]+)@", lambda match: words[match[1]], template)


BARE_METAL_MAIN = """\
/* Trains on the board alone: the start-up code calls tt_server_main, which here serves the commands of tt_loop.h over the
 * board's byte stream (a UART; on an emulated board two pipes). */
#include "tt_@NAME@.h"
#include "tt_loop.h"
#include "tt_port.h"
#include "tt_server.h"

static unsigned char arena[TT_LINKED_ARENA_BYTES]
    __attribute__((section(".bss.tt_arena"), aligned(TT_@UPPER@_ARENA_ALIGN)));

const char *volatile tt_server_running; /* named in the report of a fault */

static int receive(uint8_t *bytes, uint32_t count) {
  while (count > 0) {
    size_t part = tt_port_read(bytes, count);
    if (part == 0) {
      return 1;
    }
    bytes += part;
    count -= (uint32_t)part;
  }
  return 0;
}

static int send(const uint8_t *bytes, uint32_t count) {
  tt_port_write(bytes, count);
  return 0;
}

int tt_server_main(void) {
  int status = tt_@NAME@_init(arena, sizeof arena);
  if (status != TT_OK) {
    tt_port_console("init failed\\n");
    return 1;
  }
  while (tt_loop_once(&tt_@NAME@_library, arena, receive, send) == 0) {
    tt_port_flush();
  }
  return 0;
}
"""

BARE_METAL_MAKEFILE = """\
# make: @NAME@.elf; make run: on its board
CC = @TRIPLE@-gcc
FLAGS = @FLAGS@
CFLAGS = $(FLAGS) -std=c99 -Wall -Wextra -ffunction-sections -fdata-sections -include tt_config.h \\
  -I. -Ilibrary -Iruntime/include
LDFLAGS = $(FLAGS) -nostartfiles -nostdlib -Tboard.ld -Wl,--gc-sections -Wl,--no-warn-rwx-segments \\
  -Wl,-Map=@NAME@.map
SOURCES = @SOURCES@
OBJECTS = $(SOURCES:.c=.o)
IN ?= /dev/stdin
OUT ?= /dev/stdout

@NAME@.elf: $(OBJECTS) board.ld
\t$(CC) $(LDFLAGS) $(OBJECTS) -Wl,--start-group -lm -lc -lgcc -Wl,--end-group -o $@

$(OBJECTS): tt_config.h

run: @NAME@.elf
\t@RUN@

clean:
\trm -f $(OBJECTS) @NAME@.elf @NAME@.map

.PHONY: run clean
"""

BARE_METAL_README = """\
# @NAME@ on @BOARD@

Firmware that trains on the device: `make` needs `arm-none-eabi-gcc`, nothing of tvm_tinytrain. @BOARD@: @NOTE@.

`main.c` serves the one-letter commands of `library/tt_loop.h` over the board's byte stream; write your own around
`library/tt_@NAME@.h` instead: `tt_@NAME@_init` once, then the entries over the same arena.
"""

BOARD_README = """\
# @NAME@ on @BOARD@

Firmware that a session of tvm_tinytrain drives over the board's byte stream. @BOARD@: @NOTE@. To build it, with @TOOLS@ and
the package (`pip install .` in a clone of tvm_tinytrain), then to start it and talk to it:

    import tvm_tinytrain as tt
    project = tt.micro.GeneratedProject.from_directory(".").build()  # build/@NAME@.elf
    with tt.micro.Session(project) as session:
        print(session.memory())

`library/` is the archive's content, `tt_active.c` names the library that is served, `project.json` says the board's options. Compile
`runtime/` with `-Iruntime/include -include tt_config.h`; the build writes a microcontroller's linker script, `board.ld`, when
it knows in which memory the arena fits. `tinytrain project --kind bare-metal` writes sources with a Makefile that need no package.
"""

ZEPHYR_MODULE = """\
name: tinytrain_@NAME@
build:
  cmake: zephyr
  kconfig: zephyr/Kconfig
samples:
  - samples
"""

ZEPHYR_CMAKE = """\
if(CONFIG_TINYTRAIN_@UPPER@)
  zephyr_library_named(tinytrain_@NAME@)
  zephyr_library_sources(
@SOURCES@
  )
  # The plan of the arena assumes nothing about optimisation; speed does.
  zephyr_library_compile_options(-O3)
  zephyr_include_directories(../src)

@SHARED@endif()
"""

ZEPHYR_SHARED = """\
  # The same for all libraries: the first module of an application compiles it.
  if(NOT TARGET @TARGET@)
    zephyr_library_named(@TARGET@)
    zephyr_library_sources(
@SOURCES@
    )
    zephyr_library_compile_options(-O3)
    set_target_properties(@TARGET@ PROPERTIES TINYTRAIN_DIGEST @DIGEST@)
  endif()
  get_target_property(digest @TARGET@ TINYTRAIN_DIGEST)
  if(NOT "${digest}" STREQUAL "@DIGEST@")
    message(FATAL_ERROR "tinytrain_@NAME@: another module has a different @TARGET@; export both with one version of tvm_tinytrain")
  endif()
"""

ZEPHYR_KCONFIG = """\
config TINYTRAIN_@UPPER@
\tbool "On-device training of @NAME@ (tvm_tinytrain)"
\thelp
\t  A C library that predicts and trains over one arena that the caller owns.
"""

ZEPHYR_SAMPLE_CMAKE = """\
cmake_minimum_required(VERSION 3.20.0)
list(APPEND ZEPHYR_EXTRA_MODULES ${CMAKE_CURRENT_SOURCE_DIR}/../..)
find_package(Zephyr REQUIRED HINTS $ENV{ZEPHYR_BASE})
project(tinytrain_@NAME@_loop C)
target_sources(app PRIVATE src/main.c)
"""

ZEPHYR_SAMPLE_CONF = """\
CONFIG_TINYTRAIN_@UPPER@=y
CONFIG_SERIAL=y
CONFIG_CONSOLE=n
CONFIG_UART_CONSOLE=n
CONFIG_FPU=y
CONFIG_MAIN_STACK_SIZE=@STACK@
"""

ZEPHYR_SAMPLE_YAML = """\
sample:
  name: tinytrain_@NAME@ loop
  description: Trains over a UART with the commands of tt_loop.h
tests:
  tinytrain.@NAME@.loop:
    build_only: true
    min_ram: @RAM@
    filter: CONFIG_CPU_HAS_FPU
"""

ZEPHYR_SAMPLE_MAIN = """\
/* The commands of tt_loop.h over the UART that the board's console would take. */
#include <zephyr/device.h>
#include <zephyr/drivers/uart.h>
#include <zephyr/kernel.h>

#include "tt_@NAME@.h"
#include "tt_loop.h"

static const struct device *const uart = DEVICE_DT_GET(DT_CHOSEN(zephyr_console));
static unsigned char __aligned(TT_@UPPER@_ARENA_ALIGN) arena[TT_@UPPER@_ARENA_BYTES];

static int receive(uint8_t *bytes, uint32_t count) {
  while (count > 0) {
    if (uart_poll_in(uart, bytes) == 0) {
      bytes++;
      count--;
    } else {
      k_yield();
    }
  }
  return 0;
}

static int send(const uint8_t *bytes, uint32_t count) {
  while (count-- > 0) {
    uart_poll_out(uart, *bytes++);
  }
  return 0;
}

int main(void) {
  if (!device_is_ready(uart) || tt_@NAME@_init(arena, sizeof arena) != TT_OK) {
    return 1;
  }
  while (tt_loop_once(&tt_@NAME@_library, arena, receive, send) == 0) {
  }
  return 0;
}
"""

ZEPHYR_README = """\
# tinytrain_@NAME@, a Zephyr module

    west build -b <board> samples/loop

or add this folder to `ZEPHYR_EXTRA_MODULES` of your application and set `CONFIG_TINYTRAIN_@UPPER@=y`; then
`#include "tt_@NAME@.h"`. The sample serves the one-letter commands of `src/tt_loop.h` over the console's UART.

Several such modules fit into one application if their names differ and one version of tvm_tinytrain wrote them: the first compiles
what they share.
"""

ARDUINO_PROPERTIES = """\
name=TinyTrain_@TITLE@
version=@VERSION@
author=tvm_tinytrain
maintainer=tvm_tinytrain
sentence=On-device training of the network @NAME@.
paragraph=Predicts and trains over one arena of TT_@UPPER@_ARENA_BYTES bytes; no heap, no dependencies. Generated from a model archive.
category=Data Processing
url=https://arxiv.org/abs/2307.09988
architectures=*
dot_a_linkage=true
includes=tt_@NAME@.h,tt_loop.h
"""

ARDUINO_KEYWORDS = """\
tt_@NAME@_init\tKEYWORD2
tt_@NAME@_predict\tKEYWORD2
tt_loop_once\tKEYWORD2
TT_@UPPER@_ARENA_BYTES\tLITERAL1
TT_OK\tLITERAL1
"""

ARDUINO_SKETCH = """\
// Trains over the serial port with the one-letter commands of tt_loop.h.
#include <tt_@NAME@.h>
#include <tt_loop.h>

static unsigned char arena[TT_@UPPER@_ARENA_BYTES] __attribute__((aligned(TT_@UPPER@_ARENA_ALIGN)));

static int receive(uint8_t *bytes, uint32_t count) {
  while (count > 0) {
    if (Serial.available() > 0) {
      *bytes++ = (uint8_t)Serial.read();
      count--;
    }
  }
  return 0;
}

static int sendBytes(const uint8_t *bytes, uint32_t count) {
  return Serial.write(bytes, count) == count ? 0 : 1;
}

void setup() {
  Serial.begin(115200);
  while (!Serial) {
  }
  if (tt_@NAME@_init(arena, sizeof arena) != TT_OK) {
    while (true) {
    }
  }
}

void loop() {
  tt_loop_once(&tt_@NAME@_library, arena, receive, sendBytes);
}
"""

ARDUINO_README = """\
# TinyTrain_@TITLE@, an Arduino library

Put this folder into the sketchbook's `libraries`, or install its zip file. `File > Examples > TinyTrain_@TITLE@ > Loop` serves the
one-letter commands of `src/tt_loop.h` over the serial port. The arena takes TT_@UPPER@_ARENA_BYTES bytes of RAM (see
`src/tt_@NAME@.h`), the parameters lie in flash.

Several such libraries fit into one sketch if their names differ and one version of tvm_tinytrain wrote them: each is linked as an
archive (`dot_a_linkage`), so what they share is taken from the first.
"""

CMAKE_LISTS = """\
# cmake -S . -B build -Dtvm_tinytrain_DIR=$(python -m tvm_tinytrain.targets --cmake-dir) && cmake --build build
cmake_minimum_required(VERSION 3.19)
project(@NAME@_loop LANGUAGES C)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
find_package(tvm_tinytrain REQUIRED)
tinytrain_add_library(tinytrain_@NAME@ ARCHIVE @NAME@.tar) # CMake has targets of its own: all, help, ...
add_executable(@NAME@_loop main.c tt_loop.c)
target_link_libraries(@NAME@_loop PRIVATE tinytrain_@NAME@)
"""

CMAKE_MAIN = """\
/* The commands of tt_loop.h over standard input and output. */
#include <stdio.h>

#include "tt_@NAME@.h"
#include "tt_loop.h"

static union {
  unsigned char bytes[TT_@UPPER@_ARENA_BYTES];
  double aligned;
} arena;

static int receive(uint8_t *bytes, uint32_t count) {
  return fread(bytes, 1, count, stdin) == count ? 0 : 1;
}

static int send(const uint8_t *bytes, uint32_t count) {
  return fwrite(bytes, 1, count, stdout) == count ? 0 : 1;
}

int main(void) {
  if (tt_@NAME@_init(arena.bytes, sizeof arena.bytes) != TT_OK) {
    return 1;
  }
  while (tt_loop_once(&tt_@NAME@_library, arena.bytes, receive, send) == 0) {
    fflush(stdout);
  }
  return 0;
}
"""

CMAKE_README = """\
# @NAME@ in a CMake project

    pip install .    # in a clone of tvm_tinytrain
    cmake -S . -B build -Dtvm_tinytrain_DIR=$(python -m tvm_tinytrain.targets --cmake-dir)
    cmake --build build
    build/@NAME@_loop < commands > answers

`@NAME@.tar` is the archive; `main.c` serves the one-letter commands of `tt_loop.h`.
"""
