/* A core without memory protection, or one whose unit is not used. */
#include "tt_cortex_m.h"

void tt_mpu_enable(void) {}
void tt_mpu_disable(void) {}
