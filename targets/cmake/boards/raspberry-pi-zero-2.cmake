# Written by `python -m tvm_tinytrain.targets.cmake_boards` from targets/boards.py and targets/chips.py.
set(TINYTRAIN_BOARD_CORE cortex-a53)
set(TINYTRAIN_BOARD_OBJECTS cortex-a53 cortex-a57 cortex-a72)
set(TINYTRAIN_BOARD_TRIPLE aarch64-linux-gnu)
set(TINYTRAIN_BOARD_FLAGS -mcpu=cortex-a53 -ffp-contract=fast -fno-math-errno -fno-trapping-math)
set(TINYTRAIN_BOARD_SOURCES src/frame.c src/paint.c src/server.c src/main.c port/process.c)
set(TINYTRAIN_BOARD_ARENA_GUARD 256)
set(TINYTRAIN_BOARD_RUNNER ssh)
set(TINYTRAIN_BOARD_MACHINE "")
set(TINYTRAIN_BOARD_CONFIG [[
#define TT_BOARD_NAME "raspberry-pi-zero-2"
#define TT_STACK_BYTES 262144
#define TT_FRAME_PAYLOAD 16384u
#define TT_RECEIVE_BYTES 1024
#define TT_CLOCK_HZ 1000000000u
#define TT_BAUD 115200
]])
