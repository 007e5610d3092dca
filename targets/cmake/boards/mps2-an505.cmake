# Written by `python -m tvm_tinytrain.targets.cmake_boards` from targets/boards.py and targets/chips.py.
set(TINYTRAIN_BOARD_CORE cortex-m33)
set(TINYTRAIN_BOARD_OBJECTS cortex-m4 cortex-m7 cortex-m33)
set(TINYTRAIN_BOARD_TRIPLE arm-none-eabi)
set(TINYTRAIN_BOARD_FLAGS -mcpu=cortex-m33 -mthumb -mfloat-abi=hard -mfpu=fpv5-sp-d16 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
set(TINYTRAIN_BOARD_SOURCES src/frame.c src/paint.c src/server.c src/main.c port/semihosting.c cortex_m/startup.c cortex_m/fault.c cortex_m/mpu_v8m.c)
set(TINYTRAIN_BOARD_ARENA_GUARD 256)
set(TINYTRAIN_BOARD_RUNNER qemu-system)
set(TINYTRAIN_BOARD_MACHINE "mps2-an505")
set(TINYTRAIN_BOARD_CONFIG [[
#define TT_BOARD_NAME "mps2-an505"
#define TT_STACK_BYTES 16384
#define TT_FRAME_PAYLOAD 1024u
#define TT_RECEIVE_BYTES 1024
#define TT_CLOCK_HZ 20000000u
#define TT_BAUD 115200
#define TT_MPU_REGIONS {0x10000000u,0u,TT_ACCESS_CODE,0x400000u},{0x38000000u,0u,TT_ACCESS_DATA,0x200000u},{0x80000000u,0u,TT_ACCESS_DATA,0x1000000u},{0x40000000u,0u,TT_ACCESS_DEVICE,0x20000000u}
]])
set(TINYTRAIN_BOARD_ARENA_MEMORIES SSRAM23 PSRAM)
set(TINYTRAIN_BOARD_ARENA_MEMORY_BYTES 2097152 16777216)
set(TINYTRAIN_BOARD_BESIDE_ARENA 23552)
set(TINYTRAIN_BOARD_LINKER_SCRIPT [[
MEMORY
{
  SSRAM1 : ORIGIN = 0x10000000, LENGTH = 0x400000
  SSRAM23 : ORIGIN = 0x38000000, LENGTH = 0x200000
  PSRAM : ORIGIN = 0x80000000, LENGTH = 0x1000000
}
ENTRY(tt_reset_handler)
SECTIONS
{
  .vectors : { KEEP(*(.vectors)) } > SSRAM1
  .text :
  {
    *(.text .text.*)
    *(.rodata .rodata.*)
    . = ALIGN(8);
  } > SSRAM1
  .ARM.exidx : { *(.ARM.exidx*) } > SSRAM1
  .stack (NOLOAD) : ALIGN(8)
  {
    tt_stack_lower = .;
    . += 16384;
    tt_stack_upper = .;
  } > SSRAM23
  .data : ALIGN(8)
  {
    tt_data_start = .;
    *(.data .data.*)
    . = ALIGN(8);
    tt_data_end = .;
  } > SSRAM23 AT > SSRAM1
  tt_data_load = LOADADDR(.data);
  .tt_arena (NOLOAD) : ALIGN(32) { *(.bss.tt_arena) } > @arena@
  .bss (NOLOAD) : ALIGN(8)
  {
    tt_bss_start = .;
    *(.bss .bss.* COMMON)
    . = ALIGN(8);
    tt_bss_end = .;
  } > SSRAM23
  /DISCARD/ : { *(.comment) *(.ARM.attributes) }
}
]])
