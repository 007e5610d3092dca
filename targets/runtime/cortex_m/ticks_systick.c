/* A 64-bit clock of the core's cycles: the 24-bit system timer and a count of its rounds. */
#include "tt_cortex_m.h"
#include "tt_port.h"

#define SYST_CSR TT_REGISTER(0xe000e010u)
#define SYST_RVR TT_REGISTER(0xe000e014u)
#define SYST_CVR TT_REGISTER(0xe000e018u)
#define ROUND 0x1000000u

void tt_systick_handler(void);
static volatile uint32_t rounds;

void tt_systick_handler(void) { rounds++; }

void tt_ticks_start(void) {
  SYST_RVR = ROUND - 1u;
  SYST_CVR = 0;
  SYST_CSR = 7; /* core clock, interrupt, enabled */
}

uint64_t tt_port_ticks(void) {
  for (;;) {
    uint32_t before = rounds;
    uint32_t left = SYST_CVR;
    if (before == rounds) {
      return (uint64_t)before * ROUND + (ROUND - 1u - left);
    }
  }
}

uint32_t tt_port_ticks_per_second(void) { return TT_CLOCK_HZ; }
