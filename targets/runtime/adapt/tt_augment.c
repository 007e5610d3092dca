#include "tt_augment.h"

const tt_augment_options TT_AUGMENT_DEFAULTS = {0.9f, 0.5f, 1.0f, 0.5f, 0.125f, 0.5f};

void tt_augment_draw(uint64_t *state, float draws[TT_AUGMENT_DRAWS]) {
  for (int i = 0; i < TT_AUGMENT_DRAWS; ++i) {
    const uint64_t old = *state;
    *state = old * 6364136223846793005u + 1442695040888963407u;
    const uint32_t mixed = (uint32_t)(((old >> 18) ^ old) >> 27);
    const uint32_t turn = (uint32_t)(old >> 59);
    const uint32_t bits = (mixed >> turn) | (mixed << ((32u - turn) & 31u));
    draws[i] = (float)(bits >> 8) * (1.0f / 16777216.0f);
  }
}

/* Uniform in +- range. */
static float around(float range, float draw) { return range * (2.0f * draw - 1.0f); }

/* A whole number of pixels in +- round(size * share), all equally likely. */
static int32_t shift_of(uint32_t size, float share, float draw) {
  const int32_t most = (int32_t)((double)size * (double)share + 0.5);
  return (int32_t)((double)draw * (double)(2 * most + 1)) - most;
}

/* Colour, in place: brightness, saturation over channels, contrast over the image. Rows are summed
 * in float: a core without doubles spends some 50 instructions on each sum of them. */
static void recolour(const tt_augment_options *o, const tt_augment_shape *shape, const float *draws,
                     float *x) {
  const uint32_t channels = shape->channels;
  const uint32_t pixels = shape->height * shape->width;
  const float bright = around(o->brightness, draws[2]);
  const float saturate = 1.0f + around(o->saturation, draws[3]);
  const float contrast = 1.0f + around(o->contrast, draws[4]);
  double total = 0.0;
  for (uint32_t row = 0; row < pixels; row += shape->width) {
    float of_row = 0.0f;
    for (uint32_t p = row; p < row + shape->width; ++p) {
      float sum = 0.0f;
      for (uint32_t c = 0; c < channels; ++c) {
        x[c * pixels + p] += bright;
        sum += x[c * pixels + p];
      }
      const float grey = sum / (float)channels;
      for (uint32_t c = 0; c < channels; ++c) {
        float *value = &x[c * pixels + p];
        *value = (*value - grey) * saturate + grey;
        of_row += *value;
      }
    }
    total += (double)of_row;
  }
  const float mean = (float)(total / ((double)channels * (double)pixels));
  for (uint32_t i = 0; i < channels * pixels; ++i)
    x[i] = (x[i] - mean) * contrast + mean;
}

/* The image as if nothing had to move, mirrored or not. */
static void copy_image(const tt_augment_shape *s, int mirrored, const float *image, float *out) {
  for (uint32_t row = 0; row < s->channels * s->height; ++row)
    for (uint32_t j = 0; j < s->width; ++j)
      out[row * s->width + j] = image[row * s->width + (mirrored ? s->width - 1 - j : j)];
}

/* Moves one plane by whole pixels in place; what moves in is 0. */
static void shift_plane(uint32_t height, uint32_t width, int32_t down, int32_t right,
                        float *plane) {
  for (uint32_t n = 0; n < height; ++n) { /* away from where rows come, so that none is lost */
    const uint32_t i = down > 0 ? height - 1 - n : n;
    const int64_t from = (int64_t)i - down;
    for (uint32_t m = 0; m < width; ++m) {
      const uint32_t j = right > 0 ? width - 1 - m : m;
      const int64_t at = (int64_t)j - right;
      const int inside = from >= 0 && from < (int64_t)height && at >= 0 && at < (int64_t)width;
      plane[i * width + j] = inside ? plane[(uint32_t)from * width + (uint32_t)at] : 0.0f;
    }
  }
}

void tt_augment(const tt_augment_options *options, const tt_augment_shape *shape,
                const float draws[TT_AUGMENT_DRAWS], const float *image, float *out) {
  const uint32_t pixels = shape->height * shape->width;
  const int changed = draws[0] < options->probability;
  copy_image(shape, changed && draws[1] < options->flip, image, out);
  if (!changed)
    return;
  recolour(options, shape, draws, out);
  const int32_t down = shift_of(shape->height, options->translation, draws[5]);
  const int32_t right = shift_of(shape->width, options->translation, draws[6]);
  for (uint32_t c = 0; c < shape->channels; ++c)
    shift_plane(shape->height, shape->width, down, right, out + c * pixels);
}
