/* A linear layer, 16 inputs, 4 outputs, mean squared error, one step of gradient descent; and
 * entries that hang, crash, overflow the stack, write to flash and fail. Written by hand for the
 * tests of the runtime. */
#include "tt_fake.h"

#include <string.h>

#define INPUTS 16
#define OUTPUTS 4
#define RATE 0.05f

typedef struct {
  float input[INPUTS];
  float label[OUTPUTS];
  float output[OUTPUTS];
  float loss;
  int32_t steps;
  float weight[OUTPUTS * INPUTS];
  float bias[OUTPUTS];
  uint8_t bytes[3000];
  float gap[196]; /* never written by init, step and predict */
} state;

static const float initial_weight[OUTPUTS * INPUTS] = {
    0.1f, -0.2f, 0.3f, -0.4f, 0.5f, -0.6f, 0.7f, -0.8f,
    0.9f, -1.0f, 1.1f, -1.2f, 1.3f, -1.4f, 1.5f, -1.6f,
};

static int init(void *arena) {
  state *s = arena;
  memset(s, 0, offsetof(state, gap));
  memcpy(s->weight, initial_weight, sizeof initial_weight);
  return TT_OK;
}

int tt_fake_init(void *arena, size_t bytes) {
  if (arena == NULL) {
    return TT_ERR_ARENA_NULL;
  }
  return bytes < TT_FAKE_ARENA_BYTES ? TT_ERR_ARENA_SMALL : init(arena);
}

int tt_fake_predict(void *arena) {
  state *s = arena;
  for (int o = 0; o < OUTPUTS; o++) {
    float sum = s->bias[o];
    for (int i = 0; i < INPUTS; i++) {
      sum += s->weight[o * INPUTS + i] * s->input[i];
    }
    s->output[o] = sum;
  }
  return TT_OK;
}

int tt_fake_step(void *arena) {
  state *s = arena;
  tt_fake_predict(arena);
  s->loss = 0.0f;
  for (int o = 0; o < OUTPUTS; o++) {
    float error = s->output[o] - s->label[o];
    s->loss += error * error / OUTPUTS;
    float slope = 2.0f * error / OUTPUTS;
    for (int i = 0; i < INPUTS; i++) {
      s->weight[o * INPUTS + i] -= RATE * slope * s->input[i];
    }
    s->bias[o] -= RATE * slope;
  }
  s->steps++;
  return TT_OK;
}

static int hang(void *arena) {
  volatile int32_t *steps = &((state *)arena)->steps;
  *steps = 1;
  while (*steps) {
  }
  return TT_OK;
}

static int recurse(volatile uint8_t *bytes, int depth) {
  volatile uint8_t frame[200];
  frame[depth & 127] = (uint8_t)depth;
  *bytes = (uint8_t)(*bytes + frame[depth & 127]);
  return depth == 0 ? *bytes : recurse(bytes, depth - 1) + frame[depth & 127];
}

static int overflow_stack(void *arena) { return recurse(((state *)arena)->bytes, 1000000) < 0; }

static int use_stack(void *arena) {
  recurse(((state *)arena)->bytes, 20);
  return TT_OK;
}

static int write_flash(void *arena) {
  (void)arena;
  *(volatile float *)(uintptr_t)initial_weight = 1.0f;
  return TT_OK;
}

static int write_nowhere(void *arena) {
  (void)arena;
  *(volatile uint32_t *)(uintptr_t)0x30000000u = 1u;
  return TT_OK;
}

static int fail(void *arena) {
  (void)arena;
  return TT_ERR_BAD_VALUE;
}

static int past_arena(void *arena) {
  *((uint8_t *)arena + TT_FAKE_ARENA_BYTES + 7) = 1;
  return TT_OK;
}

#define AT(field) (uint32_t) offsetof(state, field), NULL
static const tt_tensor tensors[] = {
    {"input", TT_FLOAT32, TT_ROLE_INPUT, 2, 0, {1, INPUTS}, INPUTS * 4, AT(input)},
    {"label", TT_FLOAT32, TT_ROLE_LABEL, 2, 0, {1, OUTPUTS}, OUTPUTS * 4, AT(label)},
    {"output", TT_FLOAT32, TT_ROLE_OUTPUT, 2, 0, {1, OUTPUTS}, OUTPUTS * 4, AT(output)},
    {"loss", TT_FLOAT32, TT_ROLE_LOSS, 0, 0, {0}, 4, AT(loss)},
    {"steps", TT_INT32, TT_ROLE_STATE, 1, 0, {1}, 4, AT(steps)},
    {"weight", TT_FLOAT32, TT_ROLE_PARAM, 2, 0, {OUTPUTS, INPUTS}, OUTPUTS *INPUTS * 4, AT(weight)},
    {"bias", TT_FLOAT32, TT_ROLE_PARAM, 1, 0, {OUTPUTS}, OUTPUTS * 4, AT(bias)},
    {"bytes", TT_UINT8, TT_ROLE_STATE, 3, 0, {3, 10, 100}, 3000, AT(bytes)},
    {"initial_weight",
     TT_FLOAT32,
     TT_ROLE_CONST,
     2,
     0,
     {OUTPUTS, INPUTS},
     OUTPUTS *INPUTS * 4,
     0,
     initial_weight},
};

static const tt_entry entries[] = {
    {"init", init},
    {"step", tt_fake_step},
    {"predict", tt_fake_predict},
    {"hang", hang},
    {"overflow_stack", overflow_stack},
    {"use_stack", use_stack},
    {"write_flash", write_flash},
    {"write_nowhere", write_nowhere},
    {"fail", fail},
    {"past_arena", past_arena},
};

const tt_library tt_fake_library = {
    "fake",     "1.0",
    "0123abcd", TT_FAKE_ARENA_BYTES,
    16,         sizeof tensors / sizeof tensors[0],
    tensors,    sizeof entries / sizeof entries[0],
    entries,
};
