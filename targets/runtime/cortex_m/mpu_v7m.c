/* Memory protection of Armv7-M: no background map, so that whatever the board has not, faults. */
#include "tt_cortex_m.h"

/* Generated from the board's memory map. */
static const tt_mpu_region regions[] = {TT_MPU_REGIONS};

#define MPU_CTRL TT_REGISTER(0xe000ed94u)
#define MPU_RNR TT_REGISTER(0xe000ed98u)
#define MPU_RBAR TT_REGISTER(0xe000ed9cu)
#define MPU_RASR TT_REGISTER(0xe000eda0u)

static uint32_t attributes(uint32_t access) {
  const uint32_t never_execute = 1u << 28;
  const uint32_t read_write = 3u << 24;
  const uint32_t read_only = 6u << 24;
  const uint32_t write_through = 2u << 16;
  const uint32_t write_back = 3u << 16;
  const uint32_t device = 1u << 16;
  switch (access) {
  case TT_ACCESS_CODE:
    return read_only | write_through;
  case TT_ACCESS_DATA:
    return never_execute | read_write | write_back;
  default:
    return never_execute | read_write | device;
  }
}

void tt_mpu_enable(void) {
  for (uint32_t i = 0; i < sizeof regions / sizeof regions[0]; i++) {
    const tt_mpu_region *region = &regions[i];
    MPU_RNR = i;
    MPU_RBAR = region->base;
    MPU_RASR =
        attributes(region->access) | region->extent << 8 | (region->log2_bytes - 1u) << 1 | 1u;
  }
  MPU_CTRL = 1; /* enabled, no background map, off inside of hard faults */
  __asm__ volatile("dsb\nisb" ::: "memory");
}

void tt_mpu_disable(void) {
  MPU_CTRL = 0;
  __asm__ volatile("dsb\nisb" ::: "memory");
}
