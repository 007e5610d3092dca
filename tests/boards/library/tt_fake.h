#ifndef TT_FAKE_H
#define TT_FAKE_H

#include "tinytrain.h"

#define TT_FAKE_ARENA_BYTES 4352

extern const tt_library tt_fake_library;

int tt_fake_init(void *arena, size_t bytes);
int tt_fake_step(void *arena);
int tt_fake_predict(void *arena);

#endif
