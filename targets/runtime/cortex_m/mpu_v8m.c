/* Memory protection of Armv8-M: no background map, so that whatever the board has not, faults. */
#include "tt_cortex_m.h"

/* Generated from the board's memory map. */
static const tt_mpu_region regions[] = {TT_MPU_REGIONS};

#define MPU_CTRL TT_REGISTER(0xe000ed94u)
#define MPU_RNR TT_REGISTER(0xe000ed98u)
#define MPU_RBAR TT_REGISTER(0xe000ed9cu)
#define MPU_RLAR TT_REGISTER(0xe000eda0u)
#define MPU_MAIR0 TT_REGISTER(0xe000edc0u)

void tt_mpu_enable(void) {
  /* Attributes 0: normal memory, write-back; 1: device. */
  MPU_MAIR0 = 0x000000ffu | 0x04u << 8;
  for (uint32_t i = 0; i < sizeof regions / sizeof regions[0]; i++) {
    const tt_mpu_region *region = &regions[i];
    const uint32_t never_execute = region->access == TT_ACCESS_CODE ? 0u : 1u;
    const uint32_t permission = region->access == TT_ACCESS_CODE ? 2u : 0u; /* privileged */
    const uint32_t attribute = region->access == TT_ACCESS_DEVICE ? 1u : 0u;
    MPU_RNR = i;
    MPU_RBAR = region->base | permission << 1 | never_execute;
    MPU_RLAR = ((region->base + region->extent - 1u) & ~31u) | attribute << 1 | 1u;
  }
  MPU_CTRL = 1; /* enabled, no background map, off inside of hard faults */
  __asm__ volatile("dsb\nisb" ::: "memory");
}

void tt_mpu_disable(void) {
  MPU_CTRL = 0;
  __asm__ volatile("dsb\nisb" ::: "memory");
}
