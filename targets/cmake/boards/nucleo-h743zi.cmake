# Written by `python -m tvm_tinytrain.targets.cmake_boards` from targets/boards.py and targets/chips.py.
set(TINYTRAIN_BOARD_CORE cortex-m7)
set(TINYTRAIN_BOARD_OBJECTS cortex-m4 cortex-m7)
set(TINYTRAIN_BOARD_TRIPLE arm-none-eabi)
set(TINYTRAIN_BOARD_FLAGS -mcpu=cortex-m7 -mthumb -mfloat-abi=hard -mfpu=fpv5-sp-d16 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
set(TINYTRAIN_BOARD_SOURCES src/frame.c src/paint.c src/server.c src/main.c port/uart_stm32h7.c cortex_m/startup.c cortex_m/fault.c cortex_m/mpu_v7m.c cortex_m/ticks_systick.c)
set(TINYTRAIN_BOARD_ARENA_GUARD 64)
set(TINYTRAIN_BOARD_RUNNER serial)
set(TINYTRAIN_BOARD_MACHINE "board/st_nucleo_h743zi.cfg")
set(TINYTRAIN_BOARD_CONFIG [[
#define TT_BOARD_NAME "nucleo-h743zi"
#define TT_STACK_BYTES 8192
#define TT_FRAME_PAYLOAD 1024u
#define TT_RECEIVE_BYTES 64
#define TT_CLOCK_HZ 64000000u
#define TT_BAUD 115200
#define TT_MPU_REGIONS {0x8000000u,21u,TT_ACCESS_CODE,0x0u},{0x24000000u,19u,TT_ACCESS_DATA,0x0u},{0x20000000u,17u,TT_ACCESS_DATA,0x0u},{0x40000000u,29u,TT_ACCESS_DEVICE,0x0u}
]])
set(TINYTRAIN_BOARD_ARENA_MEMORIES AXISRAM)
set(TINYTRAIN_BOARD_ARENA_MEMORY_BYTES 524288)
set(TINYTRAIN_BOARD_BESIDE_ARENA 15360)
set(TINYTRAIN_BOARD_LINKER_SCRIPT [[
MEMORY
{
  FLASH : ORIGIN = 0x08000000, LENGTH = 0x200000
  AXISRAM : ORIGIN = 0x24000000, LENGTH = 0x80000
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
    . += 8192;
    tt_stack_upper = .;
  } > AXISRAM
  .data : ALIGN(8)
  {
    tt_data_start = .;
    *(.data .data.*)
    . = ALIGN(8);
    tt_data_end = .;
  } > AXISRAM AT > FLASH
  tt_data_load = LOADADDR(.data);
  .tt_arena (NOLOAD) : ALIGN(32) { *(.bss.tt_arena) } > @arena@
  .bss (NOLOAD) : ALIGN(8)
  {
    tt_bss_start = .;
    *(.bss .bss.* COMMON)
    . = ALIGN(8);
    tt_bss_end = .;
  } > AXISRAM
  /DISCARD/ : { *(.comment) *(.ARM.attributes) }
}
]])
