# Written by `python -m tvm_tinytrain.targets.cmake_boards` from targets/boards.py and targets/chips.py.
set(TINYTRAIN_BOARD_CORE cortex-m4)
set(TINYTRAIN_BOARD_OBJECTS cortex-m4)
set(TINYTRAIN_BOARD_TRIPLE arm-none-eabi)
set(TINYTRAIN_BOARD_FLAGS -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
set(TINYTRAIN_BOARD_SOURCES src/frame.c src/paint.c src/server.c src/main.c port/semihosting.c cortex_m/startup.c cortex_m/fault.c cortex_m/mpu_v7m.c)
set(TINYTRAIN_BOARD_ARENA_GUARD 256)
set(TINYTRAIN_BOARD_RUNNER qemu-system)
set(TINYTRAIN_BOARD_MACHINE "netduinoplus2")
set(TINYTRAIN_BOARD_CONFIG [[
#define TT_BOARD_NAME "netduinoplus2"
#define TT_STACK_BYTES 16384
#define TT_FRAME_PAYLOAD 1024u
#define TT_RECEIVE_BYTES 1024
#define TT_CLOCK_HZ 168000000u
#define TT_BAUD 115200
#define TT_MPU_REGIONS {0x8000000u,20u,TT_ACCESS_CODE,0x0u},{0x20000000u,18u,TT_ACCESS_DATA,0xc0u},{0x40000000u,29u,TT_ACCESS_DEVICE,0x0u}
]])
set(TINYTRAIN_BOARD_ARENA_MEMORIES SRAM)
set(TINYTRAIN_BOARD_ARENA_MEMORY_BYTES 196608)
set(TINYTRAIN_BOARD_BESIDE_ARENA 23552)
set(TINYTRAIN_BOARD_LINKER_SCRIPT [[
MEMORY
{
  FLASH : ORIGIN = 0x08000000, LENGTH = 0x100000
  SRAM : ORIGIN = 0x20000000, LENGTH = 0x30000
}
ENTRY(tt_reset_handler)
SECTIONS
{
  .vectors : { KEEP(*(.vectors)) } > FLASH
  .text :
  {
    *(.text .text.*)
    *(.rodata .rodata.*)
    . = ALIGN(8);
  } > FLASH
  .ARM.exidx : { *(.ARM.exidx*) } > FLASH
  .stack (NOLOAD) : ALIGN(8)
  {
    tt_stack_lower = .;
    . += 16384;
    tt_stack_upper = .;
  } > SRAM
  .data : ALIGN(8)
  {
    tt_data_start = .;
    *(.data .data.*)
    . = ALIGN(8);
    tt_data_end = .;
  } > SRAM AT > FLASH
  tt_data_load = LOADADDR(.data);
  .tt_arena (NOLOAD) : ALIGN(32) { *(.bss.tt_arena) } > @arena@
  .bss (NOLOAD) : ALIGN(8)
  {
    tt_bss_start = .;
    *(.bss .bss.* COMMON)
    . = ALIGN(8);
    tt_bss_end = .;
  } > SRAM
  /DISCARD/ : { *(.comment) *(.ARM.attributes) }
}
]])
